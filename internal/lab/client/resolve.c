/*
 * resolve [-n COUNT] [-t THREADS] [-f unspec|4|6] [-v] NAME...
 *
 * Looks the names up by getaddrinfo, all of them COUNT times, in THREADS
 * threads at once. With -v it prints a line for each lookup:
 *
 *	NAME ok|ERROR MILLISECONDS ADDRESS...
 *
 * and always, at the end, one summary line that begins with "#". It exits with
 * 0 whatever came of the lookups, and with 2 when it was called wrongly.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int count = 1, threads = 1, family = AF_UNSPEC, verbose;
static char **names;

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER; /* of stdout and: */
static long lookups, failed;
static double slowest;

static double now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static const char *word(int err)
{
	switch (err) {
	case 0: return "ok";
	case EAI_AGAIN: return "EAI_AGAIN";
	case EAI_NONAME: return "EAI_NONAME";
	case EAI_FAIL: return "EAI_FAIL";
	case EAI_MEMORY: return "EAI_MEMORY";
	case EAI_SYSTEM: return "EAI_SYSTEM";
#ifdef EAI_NODATA
	case EAI_NODATA: return "EAI_NODATA";
#endif
	}
	return "EAI_OTHER";
}

static void print(const char *name, int err, double took, const struct addrinfo *list)
{
	char text[INET6_ADDRSTRLEN];

	printf("%s %s %.3f", name, word(err), took);
	for (; list; list = list->ai_next) {
		const void *addr = list->ai_family == AF_INET
			? (const void *)&((struct sockaddr_in *)list->ai_addr)->sin_addr
			: (const void *)&((struct sockaddr_in6 *)list->ai_addr)->sin6_addr;
		if (inet_ntop(list->ai_family, addr, text, sizeof text))
			printf(" %s", text);
	}
	printf("\n");
	fflush(stdout);
}

static void lookup(const char *name)
{
	struct addrinfo hints = { .ai_family = family, .ai_socktype = SOCK_STREAM }, *list = NULL;
	double start = now_ms(), took;
	int err = getaddrinfo(name, NULL, &hints, &list);

	took = now_ms() - start;
	pthread_mutex_lock(&mu);
	lookups++;
	failed += err != 0;
	if (took > slowest)
		slowest = took;
	if (verbose)
		print(name, err, took, list);
	pthread_mutex_unlock(&mu);
	if (err == 0)
		freeaddrinfo(list);
}

static void *loop(void *unused)
{
	(void)unused;
	for (int i = 0; i < count; i++)
		for (char **name = names; *name; name++)
			lookup(*name);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t *ids;
	int opt, started;

	while ((opt = getopt(argc, argv, "n:t:f:v")) != -1) {
		switch (opt) {
		case 'n':
			count = atoi(optarg);
			break;
		case 't':
			threads = atoi(optarg);
			break;
		case 'f':
			family = !strcmp(optarg, "4") ? AF_INET : !strcmp(optarg, "6") ? AF_INET6
				: !strcmp(optarg, "unspec") ? AF_UNSPEC : -1;
			break;
		case 'v':
			verbose = 1;
			break;
		default:
			return 2;
		}
	}
	names = argv + optind;
	if (!*names || count < 1 || threads < 1 || family < 0) {
		fprintf(stderr, "usage: %s [-n COUNT] [-t THREADS] [-f unspec|4|6] [-v] NAME...\n", argv[0]);
		return 2;
	}
	ids = calloc(threads, sizeof *ids);
	if (!ids)
		return 1;
	for (started = 0; started < threads; started++)
		if (pthread_create(&ids[started], NULL, loop, NULL))
			break;
	for (int i = 0; i < started; i++)
		pthread_join(ids[i], NULL);
	printf("# lookups=%ld ok=%ld failed=%ld slowest_ms=%.3f\n", lookups, lookups - failed, failed, slowest);
	return started == threads ? 0 : 1;
}
