package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
)

// helmModules are the versions of helm that charts are tested with.
var helmModules = map[string]string{
	"3": "helm.sh/helm/v3/cmd/helm@v3.22.0",
	"4": "helm.sh/helm/v4/cmd/helm@v4.3.2",
}

// Helm returns the path of helm of this major version, "3" or "4", in the cache,
// and builds it if need be, which takes minutes.
func (l *Lab) Helm(version string) (string, error) {
	module, ok := helmModules[version]
	if !ok {
		return "", fmt.Errorf("no helm %q", version)
	}
	path, err := cached(l.ctx, "helm", []string{module, runtime.GOARCH}, func(dir string) error {
		l.log.Info("building helm, which takes some minutes", "module", module)
		return goCommand(l.ctx, dir, "install", "-trimpath", "-ldflags=-s -w", module)
	})
	if err != nil {
		return "", fmt.Errorf("build helm %s: %w", version, err)
	}
	return path, nil
}

// Helm runs helm of this major version, as an administrator on the node would,
// and returns what it prints to standard output. It sees the machine's files: charts
// are read from where they are. What it keeps ends with the lab.
func (k *Kubernetes) Helm(ctx context.Context, version string, args ...string) (stdout string, err error) {
	path, err := k.box.lab.Helm(version)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"HOME=" + k.box.dir, "KUBECONFIG=" + k.Kubeconfig()}
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err = k.box.lab.node.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), errors.Join(ctx.Err(), fmt.Errorf("helm %s: %w: %s", version, err, tail(text.Bytes())))
	}
	return out.String(), nil
}
