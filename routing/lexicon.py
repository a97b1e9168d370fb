"""The words that betray a task: verbs that open an instruction, nouns that name its product.

Data only, and English first; the other languages cover the instruction verbs of the most spoken
ones. A word stands here because it is general: none is taken from a benchmark's prompt. Words
are lower case, Latin-1, matched whole; `routing.signals` folds the text the same way.
"""
# ruff: noqa: RUF001 - other scripts have marks of their own

from collections.abc import Mapping

# Words that may stand before the verb of a request and say nothing about it.
POLITE = """
    please also and bitte briefly can carefully could could've du favor first hello help hey
    hi i i'd in instruction instructions is just kannst kindly let's like me need now ok
    okay one peux podrías por pouvez prompt puedes quickly request sentence so task thanks
    the then there three to tu two us using vous wanna want we will would you your
"""

# The verb that opens a clause -> "asks to ..."; opening a later clause, "later: asks to ...".
VERBS: Mapping[str, str] = {
    "summarize": """
        summarize summarise summary condense tldr recap abridge digest zusammenfassen fasse
        résume résumez résumer resume resuma resumir resúmelo riassumi sintetiza resumen shorten
    """,
    "translate": """
        translate translation übersetze übersetzen übersetzt traduis traduisez traduire traduce
        traduzca traducir traduz traduza traduzir traduci vertaal
    """,
    "extract": """
        extract identify parse pull tag label classify categorize categorise annotate extrahiere
        extrais extrae extraia estrai
    """,
    "find": """
        find determine evaluate analyze analyse list sort rank count rate score assign given
        read report give state grab mark detect collect gather highlight
    """,
    "write": """
        write compose draft craft pen brainstorm invent schreibe schreib verfasse écris écrivez
        rédige rédigez escribe escriba redacta escreva scrivi come tell create design generate
        make develop construct propose structure
    """,
    "edit": """
        modify refactor fix rename rewrite optimize optimise change add remove convert replace
        update correct improve debug edit make extend simplify clean port migrate delete insert
        adapt reformat patch rework annotate document vectorize parallelize speed handle use
        turn ensure move split inline wrap raise return implement define specify introduce apply
        allow switch drop adjust set
    """,
    "code": "implement code program script",
    "complete": "complete finish",
    "explain": """
        explain describe discuss elaborate compare contrast suggest recommend outline explore
        teach advise walk erkläre expliquez explique explica spiega share
    """,
    "solve": """
        solve calculate compute simplify factor integrate differentiate prove derive berechne
        calcule calcula resuelve löse résous
    """,
    "answer": "answer respond reply using based refer according",
    "pretend": """
        pretend imagine act roleplay assume embody impersonate suppose picture embrace play
        portray channel
    """,
}

# Words anywhere in the instruction -> signal.
WORDS: Mapping[str, str] = {
    "translation verb": """
        translate translated translation translating translator übersetze übersetzen übersetzung
        traduis traduire traduisez traduction traduce traducir traducción traduzir traduza
        tradução traduci traduzione vertaal
    """,
    "language name": """
        english german french spanish italian portuguese chinese mandarin cantonese japanese
        korean russian arabic hindi dutch polish turkish swedish norwegian danish finnish greek
        hebrew vietnamese thai ukrainian czech romanian hungarian indonesian swahili latin
        catalan englisch englische deutsch deutsche französisch spanisch anglais allemand
        français espagnol inglés alemán francés español inglês alemão francês inglese tedesco
    """,
    "summary word": """
        summarize summarise summarizing summary summarization tldr condense recap takeaways gist
        overview synopsis digest abridge zusammenfassung résumé résume resumen resume resumo
        riassunto abstract bullet
    """,
    "extraction verb": """
        extract extracting extraction identify entities classify categorize categorise
        classification category categories label labels tag annotate parse occurrences
        occurrence mentions mentioned sentiment intent extrahiere extrais extrae extraia records
        fields assign
    """,
    "output format": """
        csv json yaml xml table columns format separate semicolon array delimiter header column
    """,
    "supplied data": "following below above these presented provided listed",
    "data noun": """
        text texts paragraph passage article email emails record records review reviews receipt
        invoice document documents transcript log logs message messages sentence sentences
        report listing thread table contract tweets comments resume cv notes conversation
        minutes items
    """,
    "json word": "json yaml xml toml jsonl schema",
    "story noun": """
        story stories poem poems haiku sonnet limerick song lyrics essay blog speech screenplay
        novel tale fairy scene dialogue monologue slogan slogans tagline taglines headline
        headlines caption captions tweet toast joke jokes plot chapter verse ballad fable ode
        rhyme rhyming invitation announcement newsletter advertisement fanfiction letter memoir
        eulogy jingle sketch podcast script review vignette fiction scifi thriller ad ads satire
        parody riddle obituary pitch prologue epilogue villanelle gedicht geschichte poème
        histoire chanson poema cuento historia canción conto poesia racconto storia
    """,
    "author word": """
        storyteller poet novelist screenwriter playwright songwriter lyricist comedian rapper
        composer copywriter essayist scriptwriter blogger speechwriter
    """,
    "vivid word": """
        vivid imagery captivating compelling catchy engaging imaginative heartfelt whimsical
        suspenseful humorous funny persuasive witty creative evocative dramatic poetic
        enchanting lyrical magical imaginary mythical spooky romantic fictional fantasy
    """,
    "correspondence": """
        email letter resignation apology invitation announcement memo linkedin press cover note
    """,
    "program noun": """
        function functions program script class query regex endpoint algorithm decorator snippet
        cli dockerfile unittest codebase middleware microservice webpage component hook
        subroutine struct code compiler makefile crud iterator parser scraper bot api funktion
        programm fonction función programma
    """,
    "programming language": """
        python javascript typescript java c++ c# golang rust ruby php kotlin swift bash sql html
        css react django flask node perl haskell scala matlab julia powershell postgresql mysql
        numpy pandas pytorch vue angular fastapi terraform kubernetes lua postgres sqlite redis
        mongodb github docker linux git npm pip nginx excel pytest pyspark
    """,
    "program term": """
        array arrays string strings integer integers linked binary tree recursion recursive
        complexity o n leetcode unit tests dictionary dict hash stack queue async thread loop
        sorted iterate pointer node nodes graph fibonacci lists list
    """,
    "implement verb": "implement implements implementing coding",
    "edit verb": """
        modify refactor fix rename rewrite optimize optimise change add remove convert replace
        update correct improve debug edit extend simplify clean port migrate delete insert adapt
        patch bug bugs error instead fails broken crash exception typo docstring docstrings
        hints refactoring faster readable idiomatic null typed
    """,
    "explain verb": """
        explain reasoning explanation describe discuss compare contrast difference differences
        versus vs pros cons advantages disadvantages benefits implications impact impacts
        strategies tips ideas suggest suggestions recommend recommendations advice concept
        process principles examples influence influenced improve develop should might erkläre
        pourquoi explique explica why
    """,
    "quantity word": """
        each twice half double triple total altogether remaining left per times more fewer less
        average quarter third thirds percent sum equally every cost costs price pay paid spend
        spends earn earns sells sold buys bought bakes gives many much hour hours minutes miles
        km kilometers pounds dollars euros cents speed ratio older younger twice's change
        degrees increased decreased dropped fraction profit discount interest share shared
        shares days week weeks
    """,
    "number word": """
        two three four five six seven eight nine ten eleven twelve dozen hundred thousand
    """,
    "math word": """
        equation equations integral derivative polynomial quadratic triangle circle radius
        perimeter hypotenuse probability modulo remainder prime divisible matrix determinant
        eigenvalues eigenvalue theorem prove proof logarithm sine cosine angle solve calculate
        compute integer integers factorial permutations combinations median variance inequality
        vertices coordinates slope sqrt limit area volume diameter algebra endpoints segment
        midpoint parallelogram gcd lcm differentiate integrate expression simplify multiplied
        divided
    """,
    "persona word": """
        persona roleplay impersonate pretend embody character pretending dungeon npc
    """,
    "source word": """
        context passage passages documents sources source excerpt excerpts article snippets
        retrieved citations cite knowledge reference references
    """,
    "who or when": "who whom whose when where which who's",
}

# Phrases anywhere in the instruction, between commas -> signal. Folded like the text: no
# punctuation but ' + # and _.
PHRASES: Mapping[str, str] = {
    "how many": """
        how many, how much, how long, how far, how old, how fast, what is the total,
        what percentage, what fraction, combien, wie viele, wie lange, combien de, wie viel,
        cuántos, cuántas, cuánto
    """,
    "asks openly": """
        how can i, how can you, how can we, how do i, how do we, how do you, how would you,
        how should i, what are some, what should i, what would happen, what if, why do,
        why does, why might, why is, why are, what are the main, what do you think, how does,
        how do, how have, how has, tell me about, do we have, step by step, wie kann ich,
        comment puis je, cómo puedo, your opinion, should i, what's the best,
        what is the best way, what are the most, can you explain, any tips, any advice,
        is it worth, what are the differences, difference between, differences between,
        pourquoi, warum, which is better, is better, would you give, would you recommend,
        real world example, what are your
    """,
    "small talk": """
        how are you, good morning, good evening, thank you, thanks for, nice to meet, what's up,
        hello there, how's it going, how was your, i feel, i'm feeling, what can you do,
        who are you, wie geht, ça va, cómo estás, i love, my day
    """,
    "takes a role": """
        be my, act as, pretend to be, pretend you, imagine you are a, imagine you are the,
        imagine you're a, imagine yourself, imagine that you are, you are now, role of,
        the role, speak like, talk like, respond as, reply as, answer as, in character,
        stay in character, never break character, picture yourself, pretend yourself,
        the persona, from now on you, you're my, you are my, now you are, suppose you are,
        as if you were, as though you were, tu es un, du bist ein, eres un, let's roleplay,
        role play, let's role play, playing the part, put yourself in, in the voice of,
        from the perspective of, you will play, i want you to be, put yourself in the shoes
    """,
    "supplied data": """
        this text, this list, this paragraph, this passage, this email, this message,
        this transcript, this sentence, this table, this resume, this address
    """,
    "addresses a role": "you are a, you are an, you're a, you're an, you are the",
    "asks for": "i need, i want, give me, make me, i'd like, get me, we need, show me",
    "writes for someone": """
        blog post, cover letter, press release, short story, bedtime story, product description,
        ad copy, social media, fairy tale, opening paragraph, opening line, first chapter,
        thank you note, birthday card, travel blog, wedding vows, love letter, world building,
        marketing copy, instagram caption, linkedin post, concert review, movie review
    """,
    "summary phrase": """
        key points, main points, main idea, main ideas, in a few sentences, in one sentence,
        in two sentences, in three sentences, tl dr, executive summary, bullet points,
        short summary, brief summary, main takeaways, sum up, action items
    """,
    "from the source": """
        based on the, according to the, using the context, using only, given the context,
        use the following, based only on, following context, following passage,
        from the passage, in the passage, in the text, provided context, following documents,
        search results, context below, if the answer is not, the answer is not in,
        answer the question, answer the following question, documentation says, nach dem text,
        d'après le texte, según el texto
    """,
    "output phrase": """
        one per line, line by line, per line, separate line, each line, in the format,
        as a list, comma separated, return the results, present the results, as a table,
        markdown table, nothing else, return only, output only, only the, list all, list every,
        list the, find all, pull out, extract the, one of these, one of the following,
        return the answer, how many times, positive or negative
    """,
    "how to say": """
        how do you say, how do i say, how would you say, how to say, wie sagt man, wie heißt,
        render this, render it, comment dit on, cómo se dice, mean in english, mean in german,
        mean in french, mean in spanish
    """,
    "json phrase": """
        json objekt, objet json, objeto json, key value pairs, as json, in json, json object,
        json array, valid json, json format, json with, json schema, return json, output json,
        respond with json, only json, yaml file, in yaml, as yaml, as xml, in xml, json list,
        json document, mock data, json only, json response, json record, json payload,
        json config, package json, geojson, json string, json im, en json, als json,
        au format json
    """,
    "writes a program": """
        write a function, write a program, write a script, write a class, write code,
        write a query, write a sql, write an sql, write a python, write a regex, write a method,
        create a function, implement a, implement the, a regular expression, unit tests,
        write tests, unit test, a function that, a function to, a program that, a program to,
        a script that, a script to, a class that, a query that, sql query, data structure,
        bash script, shell script, rest api, time complexity, space complexity, code to,
        code for, code that, command line tool, web page, html page, web server,
        give me the code, show me the code, show the code, code only, one liner, github action,
        in c, a function called, a function named, o n, leetcode
    """,
    "edits a program": """
        this code, the code, this function, the function, my code, my function, this script,
        the script, this class, the class, this method, the method, this query, this snippet,
        the bug, type hints, error handling, pep 8, code below, following code,
        following function, the following class, this program, this component, code review,
        dieser code, diesen code, ce code, este código, esta función, diese funktion,
        cette fonction
    """,
    "factual question": """
        what year, what is the capital, what is the name, name of the, what is the population,
        how tall, how old is, how far is, who wrote, who won, who is, who was, when did,
        when was, when is, where is, where was, where did, what does, what was, what country,
        what city, what color, what type of, what kind of, meaning of, in what year,
        in what city, in what country, at what, on what, which country, wer hat, wer war,
        wann wurde, qui a, quand, dónde, quién, cuándo, in which, what is the largest,
        what is the longest, what is the smallest, what language, what did, what state
    """,
    "algebra": """
        how many ways, how many different ways, how many different, solve for, x 2, square root,
        find the value, value of x, is divisible, prove that, the sum of, the product of,
        how likely, the remainder, greatest common, least common, standard deviation,
        what is the probability
    """,
}

# Marks, between commas, that Latin-1 folding cannot see: looked up as they stand, lower case.
OTHER_SCRIPTS: Mapping[str, str] = {
    "asks to translate": "翻译, 翻譯, 訳し, 翻訳, 번역, переведи, перевод, ترجم, अनुवाद",
    "asks to summarize": "总结, 總結, 概括, 摘要, 要約, まとめて, 요약, кратко излож, резюм, لخص",
    "asks to extract": "提取, 抽取, 抽出, 추출, извлек, استخرج",
    "asks to write": "写一, 寫一, 创作, 書いて, 써줘, 써 줘, напиши, сочини, اكتب",
    "story noun": "诗, 詩, 故事, 小说, 物語, 俳句, 이야기, стих, рассказ, сказк, قصة",
    "program noun": "函数, 代码, 関数, コード, 함수, 코드, функци, код",
    "edits a program": "修复, 重构, 修正, исправь, 리팩터, 고쳐",
    "takes a role": "扮演, なりきって, представь, 역할, 假装",
    "asks openly": "如何, 怎么, 为什么, どうすれば, なぜ, 어떻게, как мне, почему, كيف",
    "who or when": "谁, 哪里, 什么时候, 哪一年, 誰, いつ, どこ, 누가, 언제, кто, когда, где",
    "how many": "多少, 几个, いくつ, いくら, 몇, сколько",
    "json phrase": "json格式, json形式",
}

# What ends a question, and what labels one that follows a passage.
QUESTION_MARKS = ("?", "？", "؟")
QUESTION_LABELS = ("question:", "\nq:", "query:", "frage:", "pregunta:", "问题：")
