package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
)

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
