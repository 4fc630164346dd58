/*
 * pause: the first process of a pod or container that has nothing to do. It
 * ends at SIGTERM and SIGINT, and takes the zombies of the processes that were
 * left to it.
 */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int sig)
{
	(void)sig;
	_exit(0);
}

static void reap(int sig)
{
	(void)sig;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void)
{
	struct sigaction ending = { .sa_handler = end }, reaping = { .sa_handler = reap, .sa_flags = SA_NOCLDSTOP };

	/* The first process of a pid namespace gets only signals that it handles. */
	if (sigaction(SIGTERM, &ending, NULL) || sigaction(SIGINT, &ending, NULL) || sigaction(SIGCHLD, &reaping, NULL))
		return 1;
	for (;;)
		pause();
}
