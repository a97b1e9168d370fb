/* Both ends of the wire for benchmarks/cost.py, one thread and one epoll each.
 *
 *   wire mock PORT PORTS CHUNKS GAP_US       a vLLM that answers at once, or CHUNKS events GAP_US apart
 *   wire load PORT CONNECTIONS SECONDS KEY SPREAD_S < BODIES   requests, one after the other on each
 *                                            connection; these are opened one by one within SPREAD_S
 *
 * The load prints a line of JSON: requests, chunks, failures, and latencies in microseconds (until
 * the whole answer, and until the first event of a stream). Any answer but 200 is a failure.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 16, EVENTS = 512, READ = 1 << 16 };

struct peer {
    int fd, streaming, left, chunked, seen_head, events;
    long want, body;            /* bytes of a message that are still to come; -1 is not known */
    double began, first, due;
    char *buffer;
    long held, room;
};

static struct peer *peers[MOST];
static int poller;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct peer *watch(int fd) {
    struct peer *peer = calloc(1, sizeof *peer);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    int yes = 1;
    if (fd >= MOST) die("too many connections");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    peer->fd = fd;
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    return peers[fd] = peer;
}

static void drop(struct peer *peer) {
    peers[peer->fd] = NULL;
    close(peer->fd);
    free(peer->buffer);
    free(peer);
}

/* Everything said here is small against a socket's buffer. */
static void say(struct peer *peer, const char *text, long size) {
    while (size > 0) {
        long sent = write(peer->fd, text, size);
        if (sent < 0 && errno == EAGAIN) { usleep(100); continue; }
        if (sent < 0) return;
        text += sent;
        size -= sent;
    }
}

static long take(struct peer *peer) {
    if (peer->room - peer->held < READ) {
        peer->room = peer->held + 2 * READ;
        peer->buffer = realloc(peer->buffer, peer->room + 1);
    }
    long got = read(peer->fd, peer->buffer + peer->held, READ);
    if (got > 0) {
        peer->held += got;
        peer->buffer[peer->held] = 0;
    }
    return got;
}

static long declared(const char *head, const char *end) {
    char *field = strcasestr(head, "\r\ncontent-length:");
    return field && field < end ? atol(field + 17) : -1;
}

/* ---- the mock ---- */

static const char JSON[] =
    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":"
    "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Certainly, here is an answer of "
    "a few words.\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":20,"
    "\"total_tokens\":36,\"completion_tokens\":16},\"metrics\":{\"time_to_first_token_ms\":9.5,"
    "\"generation_time_ms\":120.5,\"queue_time_ms\":0.1}}";
static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1,\"owned_by\":"
    "\"vllm\",\"max_model_len\":8192}]}";
static const char METRICS[] =
    "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 0.0\n"
    "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 0.0\n"
    "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.0\n";
static const char STREAM[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "transfer-encoding: chunked\r\n\r\n";
static const char EVENT[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,"
    "\"finish_reason\":null}]}\n\n";
static const char LAST[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":\"stop\"}]}\n\n"
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
    "\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"total_tokens\":36,\"completion_tokens\":16}}"
    "\n\ndata: [DONE]\n\n";

static int chunks, gap_us;
static struct peer *queue[MOST];        /* streams by when they are due: all gaps are the same */
static long first_due, last_due;

static void whole(struct peer *peer, const char *kind, const char *body) {
    char text[4096];
    int size = snprintf(text, sizeof text,
                        "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s",
                        kind, strlen(body), body);
    say(peer, text, size);
}

static void chunk(struct peer *peer, const char *body) {
    char text[2048];
    say(peer, text, snprintf(text, sizeof text, "%zx\r\n%s\r\n", strlen(body), body));
}

static void later(struct peer *peer) {
    peer->due = now_us() + gap_us;
    queue[last_due++ % MOST] = peer;
}

static void go_on(struct peer *peer) {
    if (peer->left-- > 0) {
        chunk(peer, EVENT);
        if (gap_us) later(peer); else go_on(peer);
    } else {
        chunk(peer, LAST);
        say(peer, "0\r\n\r\n", 5);
        peer->streaming = 0;
    }
}

static void answer(struct peer *peer, const char *head, const char *body) {
    if (!strncmp(head, "POST", 4)) {
        if (strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true")) {
            say(peer, STREAM, sizeof STREAM - 1);
            peer->streaming = 1;
            peer->left = chunks;
            go_on(peer);
        } else whole(peer, "application/json", JSON);
    } else if (strstr(head, "/models")) whole(peer, "application/json", MODELS);
    else if (strstr(head, "/version")) whole(peer, "application/json", "{\"version\":\"0.32.0\"}");
    else if (strstr(head, "/metrics")) whole(peer, "text/plain; version=0.0.4", METRICS);
    else whole(peer, "application/json", "{}");
}

static void serve(struct peer *peer) {
    if (take(peer) <= 0 && errno != EAGAIN) {
        if (peer->streaming && gap_us) {
            peers[peer->fd] = NULL;
            close(peer->fd);
            peer->fd = -1;              /* freed when it is due */
        } else drop(peer);
        return;
    }
    for (char *end; peer->held && (end = strstr(peer->buffer, "\r\n\r\n"));) {
        long body = declared(peer->buffer, end), all = end + 4 - peer->buffer + (body > 0 ? body : 0);
        if (peer->held < all) return;
        answer(peer, peer->buffer, end + 4);
        memmove(peer->buffer, peer->buffer + all, peer->held - all + 1);
        peer->held -= all;
    }
}

static void mock(int port, int ports) {
    static int listeners[MOST];
    struct epoll_event events[EVENTS];
    for (int each = port; each < port + ports; each++) {
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(each)};
        int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) die("listen");
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        listeners[fd] = 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int wait_ms = first_due == last_due ? 1000 : 1;
        int count = epoll_wait(poller, events, EVENTS, wait_ms);
        for (int n = 0; n < count; n++) {
            int fd = events[n].data.fd;
            if (listeners[fd]) {
                int one = accept(fd, NULL, NULL);
                if (one >= 0) watch(one);
            } else if (peers[fd]) serve(peers[fd]);
        }
        for (double now = now_us(); first_due < last_due; first_due++) {
            struct peer *peer = queue[first_due % MOST];
            if (peer->due > now) break;
            if (peer->fd < 0) { free(peer->buffer); free(peer); } else go_on(peer);
        }
    }
}

/* ---- the load ---- */

static char *bodies[MOST];              /* requests, whole, each in its turn */
static long sizes[MOST], wanted, requests, asked, events_seen, failures, kept;
static double *whole_us, *first_us;
static int target;

static void ask(struct peer *peer) {
    peer->seen_head = peer->chunked = peer->events = 0;
    peer->want = peer->body = -1;
    peer->held = 0;
    peer->first = 0;
    long turn = asked++ % wanted;
    peer->began = now_us();
    say(peer, bodies[turn], sizes[turn]);
}

static void dial(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(target)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (void *)&at, sizeof at)) die("connect");
    ask(watch(fd));
}

/* Whether an answer is whole. What has been looked at of a body is thrown away, but its last bytes,
 * in which an event or the end may have begun. */
static int is_whole(struct peer *peer) {
    if (!peer->seen_head) {
        char *end = strstr(peer->buffer, "\r\n\r\n");
        if (!end) return 0;
        peer->seen_head = 1;
        if (strncmp(peer->buffer, "HTTP/1.1 200", 12)) failures++;
        peer->want = declared(peer->buffer, end);
        peer->chunked = peer->want < 0;
        long size = end + 4 - peer->buffer;
        memmove(peer->buffer, end + 4, peer->held - size + 1);
        peer->held -= size;
    }
    if (!peer->chunked) return peer->held >= peer->want;
    char *at = peer->buffer;
    for (char *event; (event = strstr(at, "data: {")); at = event + 7) {
        if (!peer->events++) peer->first = now_us();
        events_seen++;
    }
    if (peer->held >= 5 && !memcmp(peer->buffer + peer->held - 5, "0\r\n\r\n", 5)) return 1;
    long keep = peer->buffer + peer->held - at;
    if (keep > 6) keep = 6;
    memmove(peer->buffer, peer->buffer + peer->held - keep, keep + 1);
    peer->held = keep;
    return 0;
}

static int compare(const void *a, const void *b) {
    double one = *(const double *)a, other = *(const double *)b;
    return (one > other) - (one < other);
}

static double rank(double *from, double share) {
    return kept ? from[(long)(share * (kept - 1))] : 0;
}

static void load(int connections, double seconds, double spread_s) {
    struct epoll_event events[EVENTS];
    long room = 1 << 24;
    whole_us = malloc(room * sizeof *whole_us);
    first_us = malloc(room * sizeof *first_us);
    double began = now_us(), until = began + seconds * 1e6, now = began;
    for (int dialled = 0; now < until;) {
        for (; dialled < connections && now >= began + spread_s * 1e6 * dialled / connections; dialled++)
            dial();
        int count = epoll_wait(poller, events, EVENTS, dialled < connections ? 1 : 10);
        for (int n = 0; n < count; n++) {
            struct peer *peer = peers[events[n].data.fd];
            if (!peer) continue;
            if (take(peer) <= 0) {
                if (errno == EAGAIN) continue;
                failures++;
                drop(peer);
                dial();
            } else if (is_whole(peer)) {
                requests++;
                if (kept < room) {
                    whole_us[kept] = now_us() - peer->began;
                    first_us[kept++] = peer->first ? peer->first - peer->began : 0;
                }
                ask(peer);
            }
        }
        now = now_us();
    }
    qsort(whole_us, kept, sizeof *whole_us, compare);
    qsort(first_us, kept, sizeof *first_us, compare);
    printf("{\"seconds\": %.6f, \"requests\": %ld, \"events\": %ld, \"failures\": %ld, "
           "\"whole_us\": {\"p50\": %.1f, \"p99\": %.1f}, \"first_us\": {\"p50\": %.1f, \"p99\": %.1f}}\n",
           (now - began) / 1e6, requests, events_seen, failures, rank(whole_us, .5),
           rank(whole_us, .99), rank(first_us, .5), rank(first_us, .99));
}

int main(int count, char **given) {
    if (count < 6 || count != 6 + !strcmp(given[1], "load")) {
        fprintf(stderr, "usage: wire mock PORT PORTS CHUNKS GAP_US\n"
                        "       wire load PORT CONNECTIONS SECONDS KEY SPREAD_S\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    if (!strcmp(given[1], "mock")) {
        chunks = atoi(given[4]);
        gap_us = atoi(given[5]);
        mock(atoi(given[2]), atoi(given[3]));
    }
    static char body[1 << 20];          /* a line of JSON for each request */
    target = atoi(given[2]);
    while (wanted < MOST && fgets(body, sizeof body, stdin)) {
        size_t size = strcspn(body, "\n");
        char *one = bodies[wanted] = malloc(size + 1024);
        int head = sprintf(one,
                           "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
                           "authorization: Bearer %s\r\ncontent-type: application/json\r\n"
                           "content-length: %zu\r\n\r\n", target, given[5], size);
        memcpy(one + head, body, size);
        sizes[wanted++] = head + size;
    }
    if (!wanted) { fputs("no request on standard input\n", stderr); return 2; }
    load(atoi(given[3]), atof(given[4]), atof(given[6]));
    return 0;
}
