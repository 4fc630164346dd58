package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

const (
	// kubernetesModule is the Kubernetes that runs in a box. From 1.35 on,
	// kubelet refuses the cgroups of version 1 that boxes may have.
	kubernetesModule = "k8s.io/kubernetes"
	kubernetesMinor  = "34.2"
	// etcdPackage is Debian's. Its version 3.4 does for Kubernetes 1.34.
	etcdPackage = "etcd-server"
)

// kubernetesCommands are the programs of Kubernetes that a box gets.
var kubernetesCommands = []string{
	"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
}

// kubernetesBinaries returns the directory in the cache with the programs of
// Kubernetes, and builds them if need be, from a module of their own.
func (l *Lab) kubernetesBinaries() (string, error) {
	const name = "kubernetes"
	version := "v1." + kubernetesMinor
	// Charts and clients ask for the version.
	flags := fmt.Sprintf("-ldflags=-s -w -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=1 -X %[1]s.gitMinor=%[3]s",
		"k8s.io/component-base/version", version, strings.Split(kubernetesMinor, ".")[0])
	args := []string{"build", "-mod=mod", "-trimpath", flags, "-o", name + "/"}
	for _, c := range kubernetesCommands {
		args = append(args, kubernetesModule+"/cmd/"+c)
	}
	inputs := append(args[:len(args):len(args)], version, runtime.GOARCH)
	return cached(l.ctx, name, inputs, func(dir string) error {
		l.log.Info("building Kubernetes, which takes some six minutes on an idle machine", "version", version)
		goMod, err := kubernetesGoMod(l.ctx, dir, version)
		if err != nil {
			return err
		}
		module, err := labModule(goMod)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(module), 0o644); err != nil {
			return err
		}
		return goCommand(l.ctx, dir, args...)
	})
}

// kubernetesGoMod returns the go.mod of Kubernetes itself.
func kubernetesGoMod(ctx context.Context, dir, version string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", kubernetesModule+"@"+version)
	cmd.Dir = dir
	cmd.Env = goEnv(dir)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("download %s %s: %w: %s", kubernetesModule, version, err, tail(out))
	}
	var module struct{ GoMod string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("download %s %s: %w", kubernetesModule, version, err)
	}
	b, err := os.ReadFile(module.GoMod)
	return string(b), err
}

// staging is a line in the go.mod of Kubernetes that replaces one of the modules
// that are kept in its own repository.
var staging = regexp.MustCompile(`(?m)^\s*(?:replace\s+)?(k8s\.io/[a-z0-9-]+) => \./staging/`)

// labModule is the go.mod of a module that can build Kubernetes: what that
// replaces by its own directories, which a module is downloaded without, it
// replaces by what has been published from them.
func labModule(goMod string) (string, error) {
	found := staging.FindAllStringSubmatch(goMod, -1)
	if len(found) == 0 {
		return "", fmt.Errorf("the go.mod of %s replaces no modules of its own", kubernetesModule)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "module lab\n\ngo 1.24.0\n\ngodebug default=go1.24\n\nrequire %s v1.%s\n\n", kubernetesModule, kubernetesMinor)
	for _, f := range found {
		fmt.Fprintf(&b, "replace %s => %s v0.%s\n", f[1], f[1], kubernetesMinor)
	}
	return b.String(), nil
}

// etcdBinary returns the path of Debian's etcd in the cache. The package is not
// installed: on a machine that runs systemd that would start it.
func (l *Lab) etcdBinary() (string, error) {
	return cached(l.ctx, "etcd", []string{etcdPackage, runtime.GOARCH}, func(dir string) error {
		l.log.Info("downloading a package", "package", etcdPackage)
		if err := download(l.ctx, dir, etcdPackage); err != nil {
			return err
		}
		return os.Rename(filepath.Join(dir, "usr/bin/etcd"), filepath.Join(dir, "etcd"))
	})
}

// kubeDNSArchive returns the path of an archive in the cache with the image of the
// cluster's DNS servers, and builds it if need be.
func (l *Lab) kubeDNSArchive() (string, error) {
	binary, err := l.coreDNSBinary()
	if err != nil {
		return "", err
	}
	const name = "coredns.tar"
	return cached(l.ctx, name, []string{coreDNSModule, kubeDNSImage, runtime.GOARCH}, func(dir string) error {
		archive, err := archiveOf([]Image{{Name: kubeDNSImage, Entrypoint: []string{"/coredns"}, Files: map[string]string{"coredns": binary}}})
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), archive, 0o644)
	})
}

// KubernetesBinaries builds what StartKubernetes needs and the cache lacks, so
// that the time for a test is not spent on it.
func (l *Lab) KubernetesBinaries() error {
	_, err1 := l.etcdBinary()
	_, err2 := l.kubernetesBinaries()
	_, err3 := l.kubeDNSArchive()
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("build Kubernetes: %w", err)
	}
	return nil
}
