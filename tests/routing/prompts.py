"""Prompts written for these tests, by task: other words and habits than any benchmark's.

`SINGLE` holds first user messages alone; `TALKS` whole chat bodies, where a system prompt,
earlier turns or tools decide.
"""
# ruff: noqa: RUF001 - Chinese and Japanese have punctuation of their own

from collections.abc import Mapping
from typing import Any

ARTICLE = (
    "The harbour authority said on Tuesday that the ferry line between the two islands will "
    "close for most of the winter while its only pier is rebuilt. Engineers found corrosion "
    "in eleven of the fourteen steel piles during a routine dive in August, and a second "
    "inspection three weeks later confirmed that the deck could not carry buses safely. "
    "Residents will be taken across by a smaller launch twice a day, weather permitting, and "
    "freight will go by barge from the mainland. Shopkeepers complained that the notice came "
    "too late to fill their stores, while the school on the smaller island plans to teach "
    "older pupils remotely until the spring. The works are expected to cost 3.4 million, of "
    "which the regional government pays two thirds. A fishermen's cooperative has offered its"
    " own boats for urgent trips, and the mayor thanked it at a meeting that lasted until "
    "midnight. Reopening is planned for the first week of April."
)

FACTS = (
    "Basalt is a fine-grained volcanic rock that forms when lava rich in magnesium and iron "
    "cools quickly at the surface. It makes up most of the ocean floor, and large continental"
    " provinces such as the Deccan Traps. Columns form where thick flows contract while "
    "cooling; the hexagonal pattern follows from the way cracks spread through a shrinking "
    "solid. Gabbro has the same chemistry but cools slowly at depth, so its crystals are "
    "visible to the naked eye. Weathered basalt gives fertile soil, which is why people have "
    "farmed the slopes of volcanoes for thousands of years in spite of the danger. On the "
    "Moon the dark plains seen from Earth are basalt as well: samples brought back by "
    "astronauts were dated to between three and four billion years. Quarries crush it for "
    "railway ballast, and its fibres serve as insulation. The Roman road builders set blocks "
    "of it in the streets of several towns near Vesuvius."
)

_SINGLE: Mapping[str, tuple[str, ...]] = {
    "structured": (
        "Give me a JSON object with keys name, age and city for three made-up customers.",
        "Return valid JSON only: a list of 5 European capitals with their population and country.",
        "generate mock data for a users table as json, 10 rows, fields id, email, created_at",
        "Produce a YAML file for a GitHub workflow that runs tests on push. Output only the YAML.",
        "Convert this to JSON: name=Ana; role=editor; since=2019; active=yes",
        "Create a JSON schema for an order that has lines, a customer and a shipping address.",
        "Respond in JSON with the fields title, year and director for the film Metropolis.",
        "Erzeuge ein JSON-Objekt mit den Feldern titel, autor und jahr für drei Klassiker.",
        "Output a JSON array with the planets and their diameters.",
        "I need an XML sitemap with three example urls",
        'fill this json template: {"name": "", "tags": []} for a red bicycle',
        "Return the weather for Oslo as a JSON object with temp and wind keys.",
        "Please give the answer in JSON with keys 'pro' and 'con' about e-bikes.",
        "make a toml config for a web server with port and log level",
    ),
    "extraction": (
        "Extract every company name and the amount invested from this text:\n\nNorthwind raised "
        "4m from Alder Capital. A week later Tasman Robotics closed a 12m round led by Birch "
        "Ventures.",
        "From the email below pull out the sender, the meeting date and the room, one per "
        "line.\n\nHi all, Jo here. Can we move Thursday's review to the 14th at 10:00 in room "
        "B12? Thanks",
        "Classify each of these support tickets as billing, login or shipping:\n1. I can't sign "
        "in since yesterday\n2. You charged me twice\n3. Where is my parcel?",
        "Identify all dates mentioned in the following paragraph and list them in ISO format: "
        "The treaty was signed on 4 May 1871, ratified that August and replaced on 2 March 1902.",
        "What is the sentiment of the following reviews? Answer positive or negative for each "
        "line and nothing else.\n- Broke after two days\n- Best kettle I have owned\n- meh, ok "
        "for the price",
        "List all people and places in this passage as a table.\n\n{article}",
        "Given the following log lines, find all request ids that ended in an error and return "
        "them as CSV.\n12:01 id=a1 ok\n12:02 id=b7 error timeout\n12:03 id=c9 error refused",
        "Extrahiere alle Personennamen aus dem folgenden Text: Gestern trafen sich Lena Vogt "
        "und Murat Aydin mit der Architektin Sofia Keller in Basel.",
        "Tag each word in this sentence with its part of speech: Slow rivers carry fine sand.",
        "Read the receipt and extract vendor, total and VAT.\n\nCafe Lumen\n2x espresso 5.60\n"
        "1x cake 4.20\nTotal 9.80\nincl. VAT 0.64",
        "Analyze the following customer comments and rate each from 1 to 5. Return the ratings "
        "as a list.\n1. Loved it\n2. Terrible support\n3. It was fine I guess",
        "Given the following table of temperatures, report the maximum and minimum for each "
        "city.\nCity,Mon,Tue,Wed\nOslo,3,4,1\nRome,15,17,16",
        "Find the phone numbers in this text: call 555-0100 after six or 555-0199 for "
        "emergencies.",
        "Count how often the words 'sea' and 'stone' occur in the text below.\nThe sea took the "
        "stone and the stone took the sea.",
        "Evaluate the following statements and label each as true or false.\n- Water boils at "
        "50 degrees at sea level\n- Iron rusts",
        "Who are the people mentioned in this message? List their names only: Tom met Sara and "
        "Dr. Ahmed at the gate.",
        "Extract the key skills from this resume:\nMaria Lopez. Ten years of Kubernetes, "
        "Terraform and Go. Led a team of six.",
        "Go through these records and give the oldest and newest entry per category as CSV.\n"
        "A,2001\nA,2009\nB,1999\nB,2011",
        "From the passage, identify the cause of the accident, the date and the number of "
        "injured.\n\nOn 3 June a loose rail caused a tram to derail in Lyon; four passengers "
        "were hurt.",
        "Assign one of the topics sports, politics or culture to every headline:\nMayor "
        "resigns\nStriker breaks record\nNew opera opens",
        "Extract the following from the text and format as JSON: name, role, employer.\nIda "
        "Berg joined Skagen Data as an analyst in May.",
        "Below are five product reviews. For each one, state the product, the rating and the "
        "main complaint, separated by semicolons.\n1) The lamp flickers, 2/5.\n2) Great "
        "blender, 5/5.",
        "Please parse this address into street, city and postcode: 14 Mill Lane, Norwich NR3 1AA",
        "Which of these sentences contain a spelling mistake? List their numbers only.\n1. I "
        "recieve it.\n2. All good.\n3. Definately.",
        "Here is a contract clause. Identify the parties, the effective date and the notice "
        "period.\n\nThis agreement between Orla Ltd and Finch GmbH takes effect on 1 May 2023 "
        "and may be ended with 60 days notice.",
        "Given this list of transactions, return the total per account in CSV format.\n"
        "acc,amount\nA,10\nB,5\nA,7",
        "Read the following passage and answer with the names of all countries mentioned, comma "
        "separated.\nWe flew from Peru to Chile and on to Fiji.",
        "Sort these animals into mammals, birds and reptiles: whale, gecko, owl, bat, penguin, "
        "turtle",
        "Grab all the URLs from this text and print each on its own line: see https://a.io and "
        "http://b.org/x for more",
        "Detect the named entities (person, organisation, location) in: Angela flew to Kyoto to "
        "meet the board of Hoshino.",
        "In the following transcript, mark every action item with its owner.\nKim: I'll send "
        "the draft. Lee: I'll book the room.",
        "Which dates appear in this letter? Dear Sir, on 3 May I paid; on 9 May you confirmed.",
        "Pull every email address out of the following notes: ann@x.org called, then bob@y.com "
        "wrote.",
        "Label the following tweets as spam or not spam.\n1. Win a phone!!!\n2. Lunch at noon?",
        "Here are three job ads. Extract title, city and salary for each and present them in a "
        "table.\n1. Nurse, Bonn, 3,400\n2. Welder, Graz, 3,100\n3. Clerk, Bern, 5,000",
        "From these lab notes list each sample and its pH.\nS1 was at 6.8, S2 slightly acidic "
        "at 5.9.",
    ),
    "code": (
        "Write a Python function that merges overlapping intervals.",
        "implement an lru cache in go with O(1) get and put",
        "I need a bash script that renames every .jpeg in a folder to .jpg",
        "Can you write a SQL query that returns the top 3 customers per region by revenue?",
        "Create a React component for a searchable dropdown, TypeScript please.",
        "How would I implement a rate limiter in Rust using a token bucket? Show the code.",
        "write a regex that matches IPv4 addresses",
        "Write unit tests with pytest for a function slugify(text) that lowercases and "
        "hyphenates.",
        'def moving_average(values, window):\n    """Return the list of averages over each '
        'window."""\n',
        "#include <vector>\n\n// Returns the indices of the two numbers that add up to target.\n"
        "std::vector<int> two_sum(const std::vector<int>& nums, int target) {\n",
        "Build a small Flask API with two endpoints: one to create a note and one to list notes.",
        "Schreibe eine Python-Funktion, die prüft, ob ein String ein Palindrom ist.",
        "Escribe una función en JavaScript que ordene un array de objetos por fecha.",
        "写一个Python函数，计算两个日期之间的工作日数量。",
        "Given a grid of 0s and 1s, write a program to count the islands. Use depth-first search.",
        "Make me a dockerfile for a node 20 app that runs as a non-root user",
        "import pandas as pd\n\ndef load_sales(path: str) -> pd.DataFrame:\n    # read the csv, "
        "parse dates, drop duplicates\n",
        "Complete this function:\n\ndef gcd(a: int, b: int) -> int:\n",
        "sort a dict by value in python",
        "how do I reverse a linked list in C? give me the code",
        "Write a program that prints the first n rows of Pascal's triangle.",
        "create a postgres table for invoices with sensible constraints",
        "Design a class hierarchy in Java for a parking lot.",
        "two sum leetcode solution c++ O(n)",
        "Write a GitHub action step that caches pip",
        "powershell one-liner to list the 10 largest files",
        "Implement binary search over a rotated array.",
        "Write an HTML page with a centered login form and some CSS.",
        "Develop a Kotlin coroutine that polls an endpoint every 5 s",
        "Given two strings, write a function that checks whether one is a rotation of the other.",
        "How to implement a trie in TypeScript?",
        "Write a script to back up a MySQL database every night.",
        "Create a Makefile for a small C project",
        "You are given an array of stock prices. Return the maximum profit with one "
        "transaction. Write it in Java.",
        "Develop a program that simulates Conway's Game of Life.",
        "Write a C# method that checks if a number is prime.",
        "how to center a div with css grid",
        "Implement Dijkstra's algorithm in Python with a priority queue.",
        "I want a JS function debounce(fn, ms)",
        "Write a Terraform module for an S3 bucket.",
    ),
    "code_edit": (
        "Fix the off-by-one error here:\n\nfor (int i = 0; i <= n; i++) {\n    total += a[i];\n"
        "}\n",
        "Refactor this to use a list comprehension.\n\n```python\nout = []\nfor x in xs:\n    "
        "if x > 0:\n        out.append(x * x)\n```",
        "Add type hints and a docstring to this function:\n\ndef area(w, h):\n    if w < 0 or h "
        "< 0:\n        raise ValueError('negative')\n    return w * h",
        "Convert the following class to a dataclass\n\nclass Point:\n    def __init__(self, x, "
        "y):\n        self.x = x\n        self.y = y\n",
        "Rename the variable `tmp` to `buffer` everywhere.\n\n```go\nfunc read(r io.Reader) "
        "([]byte, error) {\n\ttmp := make([]byte, 64)\n\tn, err := r.Read(tmp)\n\treturn "
        "tmp[:n], err\n}\n```",
        "my code throws IndexError when the list is empty, please fix\n\ndef first(xs):\n    "
        "head = xs[0]\n    return head.strip()",
        "Make this query faster by avoiding the subselect:\n\nSELECT name FROM users WHERE id "
        "IN (SELECT user_id FROM orders WHERE total > 100);",
        "Port this from callbacks to async/await:\n\nfunction load(id, cb) {\n  db.get(id, "
        "(err, row) => {\n    if (err) return cb(err);\n    cb(null, row);\n  });\n}",
        "The handler should return 404 instead of 500 when the item is missing.\n\n"
        "@app.get('/items/{id}')\ndef get_item(id: int):\n    item = store[id]\n    return "
        "item.to_dict()",
        "Remove the unused imports.\n\nimport os\nimport sys\nimport json\n\n\ndef "
        "dump(x):\n    return json.dumps(x)\n",
        "Ajoute la gestion des erreurs à ce code :\n\n```python\nwith open(path) as f:\n    "
        "data = json.load(f)\nreturn data['items']\n```",
        "Why does this loop forever? Please correct it.\n\nlet i = 0;\nwhile (i < 10) {\n  if "
        "(i === 5) continue;\n  i++;\n}",
        "Here is my component. Replace the class with hooks.\n\nexport default class Counter "
        "extends React.Component {\n  state = { n: 0 };\n  render() {\n    return "
        "<b>{this.state.n}</b>;\n  }\n}",
        "Use an early return and drop the else branch\n\nfn sign(x: i32) -> i32 {\n    if x < 0 "
        "{\n        -1\n    } else {\n        1\n    }\n}",
        "Optimize this:\n\ndef fib(n):\n    if n < 2:\n        return n\n    return fib(n-1) + "
        "fib(n-2)",
        "Add a --verbose flag.\n\nimport argparse\np = argparse.ArgumentParser()\n"
        "p.add_argument('path')\nargs = p.parse_args()",
        "this C code leaks memory, where and how do I fix it?\n```c\nchar *dup(const char *s) "
        "{\n  char *r = malloc(strlen(s) + 1);\n  strcpy(r, s);\n  return strdup(r);\n}\n```",
        "Translate this Python function to Java:\n\ndef add(a, b):\n    return a + b\n",
        'Use parameterized queries.\n\ncur.execute("SELECT * FROM t WHERE id = %s" % id)\nrow = '
        "cur.fetchone()\n",
        "Complete the TODO.\n\nclass Stack:\n    def __init__(self):\n        self.items = "
        "[]\n\n    def push(self, x):\n        self.items.append(x)\n\n    def "
        "pop(self):\n        # TODO\n        pass",
        'make the button red\n\n<button class="btn">\n  Save\n</button>\n<style>\n.btn { color: '
        "blue; }\n</style>",
        "Speed this up:\n\nresult = []\nfor a in xs:\n    for b in ys:\n        if a == "
        "b:\n            result.append(a)",
        "Make this thread-safe.\n\npublic class Counter {\n    private int n;\n    public void "
        "inc() { n++; }\n}",
        "Please add logging to\n\ndef sync(path):\n    files = scan(path)\n    upload(files)\n",
        "There's a typo in this html, fix it\n<div>\n  <p>hello</pp>\n</div>",
    ),
    "math": (
        "A baker makes 48 rolls and sells three quarters of them in the morning. How many are "
        "left?",
        "Solve for x: 3x + 7 = 2x - 5",
        "What is the derivative of x^3 * sin(x)?",
        "If a train covers 180 km in 2.5 hours, what is its average speed?",
        "compute the probability of drawing two aces from a deck without replacement",
        "Nora buys 3 notebooks at $2.40 each and pays with a $10 note. How much change does she "
        "get?",
        "Find the area of a triangle with sides 7, 8 and 9.",
        "Prove that the sum of two odd integers is even.",
        "Ein Wasserhahn füllt ein Becken in 6 Stunden, ein zweiter in 4. Wie lange brauchen "
        "beide zusammen?",
        "Un agricultor tiene 24 vacas y vende un tercio. ¿Cuántas vacas le quedan?",
        "Evaluate the integral of 1/(1+x^2) from 0 to 1",
        "What is 17% of 2,340?",
        "The ratio of cats to dogs in a shelter is 5:3 and there are 64 animals in total. How "
        "many dogs are there?",
        "Tickets cost 12 for adults and half of that for children. A family of 2 adults and 3 "
        "children goes to the show. What do they pay in total?",
        "小明有15个苹果，给了小红6个，又买了8个，现在有多少个苹果？",
        "what is 23 * 19",
        "A car loses 15% of its value each year. It costs 20000 new. What is it worth after 2 "
        "years?",
        "Simplify (2x^2 - 8)/(x - 2)",
        "If 5 workers paint a fence in 6 hours, how long would 3 workers need?",
        "Maria is 4 years older than twice Luca's age. Together they are 31. How old is Luca?",
        "How many ways can 6 people sit around a round table?",
        "Find the eigenvalues of [[2,1],[1,2]].",
        "Sum of the first 100 positive integers?",
        "A jar has red, blue and green marbles in the ratio 2:3:4. If there are 36 marbles, "
        "find the number of blue ones.",
        "Was ist die Ableitung von ln(x)/x?",
        "x + y = 10 and x - y = 4, find x and y",
        "Tom has a dozen eggs, he drops three and boils half of the rest. How many raw eggs are "
        "left?",
        "A tank holds 240 litres. It leaks 3 litres an hour. After how many hours is it half "
        "empty?",
        "What is the least common multiple of 12 and 18?",
        "Three friends split a bill of $84 so that Ann pays twice as much as Bo and Bo as much "
        "as Cy. What does each pay?",
        "Given that f(x) = 2x + 1, find f(f(3)).",
        "A rectangle is 3 cm longer than it is wide and its perimeter is 26 cm. What is its "
        "width?",
        "How many prime numbers are there below 50?",
        "A shirt costs $40 after a 20% discount. What was the original price?",
        "Lena reads 12 pages a day. Her book has 300 pages and she has read 84. In how many "
        "days will she finish?",
        "What is the area of a circle with radius 5?",
        "Factor x^2 - 5x + 6.",
        "In a class of 30, 18 play football, 15 play tennis and 5 play neither. How many play "
        "both?",
    ),
    "summarization": (
        "Summarize the article below in three sentences.\n\n{article}",
        "tl;dr please:\n\n{article}",
        "{article}\n\nGive me the key points as bullet points.",
        "Can you write a brief summary of this?\n{article}",
        "Fasse den folgenden Text in zwei Sätzen zusammen:\n\nDer Fährverkehr zwischen den "
        "Inseln ruht über den Winter, weil der Anleger neu gebaut wird. Ein kleines Boot fährt "
        "zweimal am Tag.",
        "Résume ce texte en une phrase : La ligne de ferry ferme tout l'hiver parce que la "
        "jetée est reconstruite ; une vedette assurera deux traversées par jour.",
        "Condense these meeting notes to the main takeaways:\n- pier closed until April\n- "
        "launch twice a day\n- freight by barge\n- school partly remote",
        "What are the main points of the following report?\n\n{article}",
        "总结下面的文章：渡轮航线将在冬季关闭，因为码头需要重建。小船每天往返两次。",
        "{article}\n\nSummarize the text above for a newsletter.",
        "Resume el siguiente texto en dos frases: La línea de ferry cerrará todo el invierno "
        "porque se reconstruye el muelle. Una lancha cruzará dos veces al día.",
        "Shorten this to one paragraph: The council met on Monday. It discussed the budget, the "
        "new bus lane and the library roof. Nothing was decided except the roof.",
        "Give a one-sentence summary of the plot of Hamlet.",
        "What's the gist of this thread?\n> we should ship friday\n> no, tests fail\n> ok "
        "monday then",
        "Please provide a concise overview of the text below.\n\nThe council met on Monday and "
        "agreed to fix the roof.",
        "Sum up this chat for someone who missed it: A: lunch? B: one o'clock. A: ok, the usual "
        "place.",
        "Boil this down to two bullet points: The pier closes in winter; a launch runs twice "
        "daily; freight goes by barge.",
    ),
    "rag": (
        "{facts}\n\nWhy is soil near volcanoes fertile?",
        "Context:\n{facts}\n\nQuestion: How old are the samples from the Moon?\nAnswer:",
        "Answer the question using only the passages below. Cite them.\n\n[1] {facts}\n\n[2] "
        "{article}\n\nQuestion: What rock makes up most of the ocean floor?",
        "Use the following pieces of context to answer the question at the end. If you don't "
        "know the answer, say so.\n\n{facts}\n\nQuestion: How does gabbro differ from basalt?",
        "According to the document, who offered boats for urgent trips?\n\n{article}",
        "{article}\nwhen does the pier reopen?",
        "Based on the article, what share of the cost does the regional government pay?\n\n"
        "{article}",
        "<documents>\n{facts}\n</documents>\n\nWhere did the Romans use basalt?",
        "Beantworte die Frage anhand des Textes.\n\nText: {article}\n\nFrage: Wie viel kosten "
        "die Arbeiten?",
    ),
    "qa": (
        "Who painted the ceiling of the Sistine Chapel?",
        "what's the capital of mongolia",
        "When did the first Moon landing take place?",
        "Which element has the atomic number 26?",
        "how tall is mount kilimanjaro",
        "Where are the headquarters of the International Red Cross?",
        "What language is spoken in Suriname?",
        "Wer hat das Telefon erfunden?",
        "Quelle est la capitale de l'Australie ?",
        "¿En qué año cayó el muro de Berlín?",
        "Who was the second person to walk on the moon?",
        "Name of the river that flows through Baghdad?",
        "how many bones are in the human body",
        "谁写了《红楼梦》？",
        "What does the acronym NATO stand for?",
        "Is Pluto a planet?",
        "who sings the theme song of the bond film skyfall",
        "Which planet has the most moons?",
        "when was the eiffel tower built",
        "where does the danube start",
        "What is the chemical symbol for gold?",
        "In which year did Iceland become independent?",
        "who played the joker in the dark knight?",
        "what is the longest river in asia?",
        "How deep is the Mariana Trench?",
        "What currency does Japan use?",
        "was Cleopatra Greek?",
        "how long does it take light to reach earth from the sun?",
        "the first woman to win a nobel prize?",
        "Wann begann der Erste Weltkrieg?",
        "latest season of the crown release date?",
        "Which organ produces insulin?",
        "How many players are in a rugby union team?",
        "who is the president of the world bank",
        "Which river runs through Vienna?",
        "what is the boiling point of ethanol",
        "when does daylight saving time end in 2024",
        "Who was the first emperor of China?",
        "where is the book of kells kept",
        "how many episodes of chernobyl are there",
        "What is the national animal of Scotland?",
        "who did the voice of shrek",
        "The capital of Burkina Faso is?",
        "What team did Messi play for in 2010?",
        "meaning of the name oisin",
        "did Einstein win a Nobel prize?",
        "Who directed Metropolis?",
        "what is the tallest building in europe",
        "when did portugal join the eu",
        "Where was Marie Curie born?",
        "how many strings does a cello have",
        "which country has the most time zones",
        "what does html stand for",
        "who holds the record for the 100m sprint",
    ),
    "translation": (
        "Translate to French: The shop opens at nine and closes at noon on Saturdays.",
        "How do you say 'I lost my luggage' in Italian?",
        "Übersetze ins Englische: Die Sitzung wurde auf nächsten Dienstag verschoben.",
        "Please translate the following paragraph into Spanish.\n\nThe pier will be rebuilt "
        "during the winter. A small boat will run twice a day.",
        "Traduis en anglais : Le dernier bus part à vingt-trois heures.",
        "Traduce al inglés: No encuentro las llaves del coche.",
        "把这句话翻译成英文：我们明天早上八点出发。",
        "次の文を英語に訳してください：駅までどのくらいかかりますか。",
        "Переведи на английский: Завтра будет дождь.",
        "English to German: Where can I buy a stamp?",
        "translate this email into japanese, keep it polite: Thank you for the quick reply. We "
        "will send the contract on Monday.",
        "What is the Portuguese translation of 'The bridge is closed for repairs'?",
        "Traduci in inglese: Il treno è in ritardo di venti minuti.",
        "Translate this into Dutch:\n\n{article}",
        "{article}\n\nTranslate the text above into Spanish.",
        "Can you put this into English? Ich habe keine Ahnung.",
        "What does 'je ne sais quoi' mean in English?",
        "Give me the Spanish for 'see you tomorrow'",
        "Translate: Bom dia, como vai?",
        "请翻译成中文：The weather is lovely today.",
        "Render this in French: The cat sleeps.",
        "Vertaal naar het Engels: Ik kom morgen later.",
        "Translate 'good night' into Finnish.",
        "Could you translate the following into Italian: We will be there at six.",
        "Wie heißt 'umbrella' auf Deutsch?",
        "to french: where is the station?",
        "Traduce esta frase al francés: Hace mucho frío hoy.",
    ),
    "chat": (
        "hey, how's it going?",
        "I can't decide whether to move to a bigger city. What do you think?",
        "Explain how a heat pump works.",
        "What is a fjord? How does one form, and why are there so many in Norway?",
        "What are some good habits for sleeping better?",
        "Why do people find minor chords sad?",
        "Compare electric and petrol cars for someone who drives mostly in town.",
        "Can you give me tips for a first job interview?",
        "What would happen if bees died out?",
        "I'm feeling a bit down today.",
        "Describe the advantages and disadvantages of working in shifts.",
        "Wie kann ich besser mit Stress umgehen?",
        "Pourquoi est-il important de bien dormir ?",
        "¿Cómo puedo aprender a tocar la guitarra sin profesor?",
        "How do vaccines train the immune system?",
        "thanks, that was really helpful!",
        "Suggest three day trips from Lisbon for a family with small children.",
        "Should I learn to swim before going on a sailing course?",
        "What is the difference between weather and climate?",
        "如何提高英语口语水平？",
        "What's the best way to learn a new language as an adult?",
        "How can companies reduce food waste?",
        "Discuss the causes of the French Revolution and its effects on Europe.",
        "Explain quantum entanglement like I'm ten.",
        "What are the pros and cons of remote work?",
        "Do you think artificial intelligence will replace teachers?",
        "Why might a cat suddenly stop eating?",
        "How did the invention of the printing press change Europe?",
        "Describe how photosynthesis works and why it matters.",
        "What if gravity were half as strong?",
        "Give me advice on dealing with a noisy neighbour.",
        "How many piano tuners might there be in Chicago? Walk me through your reasoning.",
        "Can you recommend a good book about the history of mathematics?",
        "Outline the steps of the scientific method with an example for each.",
        "My friend forgot my birthday and I feel hurt, should I say something?",
        "If you have three apples and take away two, which ones do you have?",
        "In what ways does social media shape elections?",
        "lol ok",
        "What are the ethical concerns around cloning pets?",
        "Explain the difference between a virus and a bacterium.",
        "What might have happened if Rome had never fallen?",
        "How do noise-cancelling headphones work?",
        "Describe the main stages of the water cycle and explain why it matters for farming.",
        "Is it better to rent or to buy a flat these days?",
        "Please suggest some icebreakers for a team of twelve.",
        "How can I tell if an avocado is ripe?",
        "Why is the sky blue? Explain it step by step.",
        "What do you think about minimalism?",
        "How does inflation affect savings, and what can people do about it?",
        "How many cups of coffee are sold in London every day? Explain how you estimate it.",
        "Can you walk me through setting up a budget?",
        "good night!",
        "Discuss whether zoos are ethical.",
        "There are three boxes; one has gold. The labels are all wrong. How do you find the gold?",
        "What could explain a sudden drop in bee numbers, and how would you test it?",
        "How do I get over stage fright?",
        "What are some fun facts about octopuses?",
        "I just got promoted!",
        "Why do leaves change colour in autumn?",
        "Which is better for a beginner, guitar or piano?",
        "Explain the trolley problem and common responses to it.",
        "What advice would you give to a first-time manager?",
        "What are the main causes of soil erosion?",
        "Could you elaborate on how tides work?",
        "What if humans could hibernate?",
    ),
    "roleplay": (
        "You are a grumpy lighthouse keeper. A lost tourist knocks at your door. React.",
        "Act as a medieval innkeeper and greet me.",
        "Pretend you're my driving examiner and talk me through the test.",
        "Let's roleplay: you are the detective and I'm the suspect. Start the interrogation.",
        "As a ghost who haunts a library, tell me what you do at night.",
        "Take on the role of a salary negotiation coach; I'll be the employee.",
        "Imagine you are a dolphin. How would you explain the sea to a bird?",
        "Speak like a pirate from now on. What's for lunch?",
        "I want you to act as a job interviewer for a nursing position. Ask me one question at "
        "a time.",
        "Du bist ein strenger Zugbegleiter im Jahr 1920. Kontrolliere meine Fahrkarte.",
        "请你扮演一位古代的诗人，和我聊聊月亮。",
        "Stay in character as a retired spy and answer my questions about your last mission.",
        "Assume the role of a museum guide and walk me through the Egyptian wing.",
        "You're my personal trainer. Yell at me until I do ten push-ups.",
        "Play the part of a Victorian butler who disapproves of smartphones.",
        "As an astronaut on a year-long mission, describe what you miss most.",
        "Picture yourself as an old oak. What have you seen?",
        "From now on you are Greta, a witch who sells used brooms. I walk into your shop.",
        "Pretend that you are a customs officer. I have a suspicious suitcase.",
        "Answer as if you were Napoleon: why did you invade Russia?",
        'I want you to act as a debate coach. My first request is "prepare our team for a '
        'debate on zoos."',
        "Eres un camarero en un bar de Sevilla. Atiéndeme.",
        "Tu es un capitaine de bateau. Raconte-moi ta pire tempête.",
        "You are a Roman senator in 44 BC. Tell me what you saw on the Ides of March.",
        "Act like you're my grandmother and scold me for not eating.",
        "Suppose you were the mayor of a small town facing a flood. Address the citizens.",
        "As a seasoned chess coach, how would you advise a nervous beginner before a tournament?",
        "You are an alien anthropologist observing a supermarket. Report what you see.",
        "Imagine yourself as a firefighter on your first day. Tell us about it.",
        "Take the role of a devil's advocate in our discussion about nuclear power.",
        "I want you to act as a travel guide. I will tell you my location and you suggest a "
        "place nearby.",
        "Be my therapist for a moment. I can't sleep.",
        "Let's play a text adventure. You are the narrator and I explore a cave.",
        "Impersonate Sherlock Holmes and comment on my muddy shoes.",
        "You will play a waiter, I'm a customer with strange wishes. Begin.",
        "Embody a wise old turtle and answer: what is patience?",
        "Act as my French teacher and correct my mistakes.",
        "Pretend to be a time traveller from 1850 who sees a phone.",
        "As a queen addressing her army before battle, give your speech.",
        "You are an old fisherman. Tell me about the storm of '62.",
        "Please take on the persona of a cynical robot. How was your day?",
        "Imagine you are the first mayor of Mars. What are your priorities?",
    ),
    "creative": (
        "Write a short story about a clock that runs backwards.",
        "compose a haiku about autumn rain",
        "Draft a wedding toast for my best friend, funny but warm.",
        "Give me a catchy slogan for a bakery that opens at 4 am",
        "Write the opening paragraph of a thriller set in Helsinki.",
        "Schreibe ein Gedicht über das Meer.",
        "Écris une histoire pour enfants sur un renard timide.",
        "Escribe un poema sobre la lluvia en la ciudad.",
        "写一首关于秋天的诗",
        "Write a blog post about slow travel in the Balkans.",
        "Can you come up with a bedtime story with a dragon who is afraid of fire?",
        "Invent a new folk tale that explains why the moon has spots.",
        "write me a rap about doing the dishes",
        "Write a polite email to my landlord about the broken heating.",
        "Continue this story: The door at the end of the corridor had never been opened before.",
        "Write song lyrics about leaving a small town, two verses and a chorus.",
        "Write a persuasive speech arguing that naps should be mandatory at work.",
        "Create an outline for a fantasy novel with three rival kingdoms.",
        "Describe a bustling night market using rich sensory detail and poetic language.",
        "Craft a LinkedIn post announcing my new job as a beekeeper.",
        "Develop a captivating product description for a solar lantern.",
        "I need a funny best man speech for my brother.",
        "I want you to act as a songwriter. I need lyrics about the northern lights.",
        "Write a cover letter for a junior accountant position.",
        "Write a script for a two-minute video ad about raincoats.",
        "tell me a joke about programmers",
        "Rewrite Little Red Riding Hood as a noir detective story.",
        "Help me write a farewell message to my colleagues.",
        "Come up with five names for a cat cafe",
        "Compose a formal complaint letter to an airline about lost baggage.",
        "Act as a stand-up comedian and write a bit about airports.",
        "Pen a limerick about a snail who wanted to race.",
        "Make up a myth about how the desert got its dunes.",
        "Write an engaging introduction for a podcast about lost cities.",
        "Propose three catchy titles for an article on urban gardening.",
        "Create a dialogue between the sun and the moon.",
        "Write a eulogy for my grandfather who loved trains.",
        "Compose a tweet announcing our bakery's reopening.",
        "Draft an email to invite colleagues to a charity run.",
        "Write a review of an imaginary restaurant on the moon.",
        "Design a magical creature and describe its habitat in rich language.",
        "write a villanelle",
        "Begin a novel with the sentence: Nobody had told the cat.",
        "Write a one-page personal statement for a scholarship in marine biology.",
        "Give me five writing prompts about winter",
        'I want you to act as a playwright. My first request is "write a scene about two '
        'strangers in a lift".',
        "Produce a radio ad for umbrellas, 30 seconds.",
        "Turn this news item into a poem: the pier is closed until April.",
        "Write a monologue for a retired clown.",
        "Compose a four-line poem about coffee.",
        "Write an opinion piece on banning cars from city centres.",
        "Draft a press release for the launch of a folding kayak.",
        "Tell a spooky story around a campfire.",
        "Come up with a plot twist for a heist movie.",
        "Write an inspiring graduation speech.",
    ),
}

SINGLE = {
    task: tuple(p.replace("{article}", ARTICLE).replace("{facts}", FACTS) for p in prompts)
    for task, prompts in _SINGLE.items()
}


def chat(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    """Return a chat body from (role, content) pairs."""
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"model": "m", "messages": messages, **fields}


WEATHER = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
SNIPPET = "```python\ndef mean(xs):\n    return sum(xs) / len(xs)\n```"

TALKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("roleplay", chat(
        ("system", "You are Captain Brae, a sky pirate. Never break character."),
        ("user", "Who goes there?"))),
    ("roleplay", chat(
        ("system", "Roleplay as Mira, a sarcastic shopkeeper in a fantasy town."),
        ("user", "Hi, do you have any potions?"))),
    ("translation", chat(
        ("system", "Translate everything the user writes into Polish, nothing else."),
        ("user", "The meeting starts at ten."))),
    ("translation", chat(
        ("system", "You are a professional translator from German to English."),
        ("user", "Der Vertrag verlängert sich automatisch um ein Jahr."))),
    ("summarization", chat(
        ("system", "You summarize news articles in one paragraph."), ("user", ARTICLE))),
    ("rag", chat(
        ("system", "Answer the question based on the context.\n\nContext:\n" + FACTS),
        ("user", "Which rock has the same chemistry?"))),
    ("rag", chat(
        ("system", "You answer questions using only the provided context. Context: " + ARTICLE),
        ("user", "How much will it cost?"))),
    ("structured", chat(
        ("system", "You are an API. Respond only with valid JSON."),
        ("user", "three facts about otters"))),
    ("extraction", chat(
        ("system", "Extract the product and the complaint from the customer's message."),
        ("user", "The kettle I bought last week leaks from the handle."))),
    ("code_edit", chat(
        ("user", "write a mean function"), ("assistant", SNIPPET),
        ("user", "now make it raise a clear error for empty lists"))),
    ("code_edit", chat(
        ("user", "python average?"), ("assistant", SNIPPET), ("user", "Add type hints please."))),
    ("chat", chat(
        ("user", "Tell me about octopuses."), ("assistant", "They have three hearts."),
        ("user", "wow, I love that"))),
    ("chat", chat(
        ("system", "You are a helpful assistant."), ("user", "hello! what can you do?"))),
    ("qa", chat(
        ("system", "You are a helpful assistant."), ("user", "Who discovered penicillin?"))),
    ("code", chat(
        ("system", "You are an expert programmer. Answer with code only."),
        ("user", "quicksort in haskell"))),
    ("structured", chat(("user", "Will it rain in Turin tomorrow?"), tools=WEATHER)),
    ("structured", chat(("user", "book a table for two at seven"), tools=WEATHER)),
    ("creative", chat(("user", "Write a poem about fog over the harbour."), tools=WEATHER)),
    ("summarization", chat(("user", "Summarize this article.\n\n" + ARTICLE), tools=WEATHER)),
    ("code_edit", chat(
        ("user", "Fix the bug in this function:\n\ndef inc(x):\n    y = x + 2\n    return y"),
        tools=WEATHER)),
    ("qa", chat(("user", "Who wrote Middlemarch?"), tools=WEATHER, tool_choice="none")),
    ("math", chat(
        ("system", "You are a patient maths tutor."),
        ("user", "A rope of 30 m is cut into pieces of 4 m. How much rope is left over?"))),
    ("creative", chat(
        ("system", "You are a novelist who writes noir fiction."),
        ("user", "Write the scene where the detective finds the letter."))),
)  # fmt: skip
