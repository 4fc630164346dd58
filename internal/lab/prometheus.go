package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
)

// PrometheusAddress is where a Prometheus of StartPrometheus listens, in the node's
// network.
const PrometheusAddress = "127.0.0.1:9090"

// StartPrometheus runs Prometheus in the node's network. files are written to the
// directory, which must be empty; one of them, prometheus.yml, is its configuration. It
// ends with stop, which must be called, and which returns the end of its log.
func (l *Lab) StartPrometheus(dir string, files map[string]string, flags ...string) (stop func() (log string, err error), err error) {
	programs, err := Prometheus(l.ctx, l.log)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(files[name]), 0o600); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(programs, "prometheus"), append([]string{
		"--config.file=" + filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + PrometheusAddress,
	}, flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := l.node.Start(cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start prometheus: %w", err), log.Close())
	}
	return func() (string, error) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		err := log.Close()
		text, readErr := os.ReadFile(log.Name())
		return tail(text), errors.Join(err, readErr)
	}, nil
}

// Prometheus returns the cache's directory with Debian's programs prometheus and
// promtool. The package is not installed: on a machine that runs systemd that
// would start it.
func Prometheus(ctx context.Context, log *slog.Logger) (string, error) {
	const name = "prometheus"
	path, err := cached(ctx, name, []string{name, "promtool", runtime.GOARCH}, func(dir string) error {
		log.Info("downloading a package", "package", name)
		if err := download(ctx, dir, name); err != nil {
			return err
		}
		programs := filepath.Join(dir, name)
		errs := []error{os.Mkdir(programs, 0o755)}
		for _, program := range []string{"prometheus", "promtool"} {
			errs = append(errs, os.Rename(filepath.Join(dir, "usr/bin", program), filepath.Join(programs, program)))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return "", fmt.Errorf("fetch prometheus: %w", err)
	}
	return path, nil
}
