// Demo loses DNS lookups in a node in a box, on the real kernel and with real
// musl clients, and shows what nodestead says about them; then it has a real
// dockerd refuse a private registry, and shows how nodestead makes it trust. It
// exits with 0 only when all of it was really made and really seen.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodestead/nodestead/internal/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Stdout, os.Args[1:])
	if ctx.Err() != nil {
		err = errors.New("interrupted; nothing of it is left")
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string) (err error) {
	if len(args) != 1 {
		return errors.New("usage: demo PATH-OF-NODESTEAD")
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run it as root")
	}
	agent, err := filepath.Abs(args[0])
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	fmt.Fprintln(out, "Preparing: what is missing is installed and built (minutes, the first time only).")
	if err := prepare(ctx, log); err != nil {
		return err
	}

	begin := time.Now()
	s, err := newStage(ctx, out, log, agent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	for i, scene := range scenes {
		if err := s.play(i+1, scene); err != nil {
			return err
		}
	}
	if err := s.stopAgent(); err != nil {
		return err
	}
	trusted, err := s.playTrust(len(scenes), agent)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nAll %d scenes were played and seen, in %.0f s. Nothing of them is left on this machine.\n",
		len(scenes)+trusted, time.Since(begin).Seconds())
	return nil
}

// prepare installs and builds what the scenes need, so that they can be timed.
func prepare(ctx context.Context, log *slog.Logger) error {
	l, err := lab.New(ctx, log)
	if err != nil {
		return err
	}
	_, err = l.Boot(ctx, lab.BoxConfig{})
	if err == nil {
		_, err = l.AddCoreDNS(". {\n bind {addr4} {addr6}\n}\n")
	}
	if err == nil {
		_, err = l.AddRegistry(registryName, tls.Certificate{})
	}
	return errors.Join(err, l.Close())
}
