package lab

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Install installs those of the Debian packages that are missing, without what
// they recommend.
func Install(ctx context.Context, log *slog.Logger, packages ...string) error {
	if len(missing(ctx, packages)) == 0 {
		return nil
	}
	dir, err := cacheDir()
	if err != nil {
		return err
	}
	locked, err := lock(ctx, filepath.Join(dir, "install.lock"))
	if err != nil {
		return err
	}
	defer locked.Close()
	need := missing(ctx, packages)
	if len(need) == 0 {
		return nil
	}
	log.Info("installing packages", "packages", need)
	install := append([]string{"install", "-y", "--no-install-recommends"}, need...)
	if err := aptGet(ctx, install...); err == nil {
		return nil
	}
	// The package lists may be missing or old.
	if err := aptGet(ctx, "update"); err != nil {
		return fmt.Errorf("install %v: %w", need, err)
	}
	if err := aptGet(ctx, install...); err != nil {
		return fmt.Errorf("install %v: %w", need, err)
	}
	return nil
}

// download unpacks a Debian package into an empty directory, and installs nothing.
func download(ctx context.Context, dir, name string) error {
	get := func() error {
		cmd := exec.CommandContext(ctx, "apt-get", "-q", "download", name)
		cmd.Dir = dir
		return run(cmd)
	}
	if get() != nil {
		// As in Install.
		if err := aptGet(ctx, "update"); err != nil {
			return fmt.Errorf("download %s: %w", name, err)
		}
		if err := get(); err != nil {
			return fmt.Errorf("download %s: %w", name, err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return fmt.Errorf("download %s: got %v", name, files)
	}
	return run(exec.CommandContext(ctx, "dpkg-deb", "--extract", files[0], dir))
}

// missing are the packages that are not installed.
func missing(ctx context.Context, packages []string) []string {
	var need []string
	for _, p := range packages {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f=${db:Status-Status}", p).Output()
		if err != nil || string(out) != "installed" {
			need = append(need, p)
		}
	}
	return need
}

func aptGet(ctx context.Context, args ...string) error {
	// The lock of another apt is waited for.
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	return run(cmd)
}

// run runs a command and, when it fails, returns an error with what it printed last.
func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, tail(out))
	}
	return nil
}

// tail is the end of what a command printed.
func tail(out []byte) string {
	const most = 2000
	return strings.TrimSpace(string(out[max(0, len(out)-most):]))
}
