package lab

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// The root file system of a box: a Debian with these packages, and without the
// units that would change the machine (its kernel's settings, the clock, the
// random seed) or only take time. dockerd runs when it is asked for.
var (
	boxSuite    = "bookworm"
	boxPackages = []string{
		"systemd", "systemd-sysv", "dbus", "ca-certificates", "docker.io", "iptables", "iproute2", "procps",
		"containernetworking-plugins", "p11-kit", "nftables",
	}
	boxDisabled = []string{"docker.service", "docker.socket"}
	boxMasked   = []string{
		"systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service", "systemd-random-seed.service",
		"systemd-journald-audit.socket", "systemd-pstore.service", "systemd-remount-fs.service", "systemd-firstboot.service",
		"systemd-sysusers.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
		"e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty.target", "console-getty.service",
		"dev-hugepages.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
		"sys-fs-fuse-connections.mount", "proc-sys-fs-binfmt_misc.automount",
	}
)

// boxBase returns the directory of the root file system in the cache and makes
// it if need be. Nothing may be written to it.
func (l *Lab) boxBase() (string, error) {
	if err := Install(l.ctx, l.log, "mmdebstrap"); err != nil {
		return "", err
	}
	args := []string{
		"--variant=minbase",
		"--include=" + strings.Join(boxPackages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		`--customize-hook=chroot "$1" systemctl disable ` + strings.Join(boxDisabled, " "),
		`--customize-hook=chroot "$1" systemctl mask ` + strings.Join(boxMasked, " "),
		boxSuite, "rootfs",
	}
	return cached(l.ctx, "rootfs", append(args, runtime.GOARCH), func(dir string) error {
		l.log.Info("making a root file system for a box, which takes a minute or two", "suite", boxSuite)
		cmd := exec.CommandContext(l.ctx, "mmdebstrap", args...)
		cmd.Dir = dir
		return run(cmd)
	})
}

// containerdConfig is the configuration of containerd. Without CAP_SYS_RESOURCE
// nobody may lower a process's oom_score_adj, hence the restriction.
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
`

// journaldConfig keeps the machine's kernel log out of the journal of the box.
const journaldConfig = `[Journal]
ReadKMsg=no
Audit=no
`

// cniPlugin runs the CNI plugin that stands for %s. A new network namespace
// looks for duplicates of each IPv6 address, and CNI waits for that.
const cniPlugin = `#!/bin/sh
set -eu
if [ "$CNI_COMMAND" = ADD ]; then
	nsenter --net="$CNI_NETNS" sh -c 'for c in all default; do echo 0 >/proc/sys/net/ipv6/conf/$c/accept_dad; done'
fi
exec /usr/lib/cni/%s
`

// writeBoxFiles writes what a box has in addition to the base. It returns the
// machine id, by which the box's root is known.
func writeBoxFiles(dir string, cfg BoxConfig, names []hostName) (id string, err error) {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	id = hex.EncodeToString(b)
	network, err := cniConfig(cfg)
	if err != nil {
		return "", err
	}
	var hosts strings.Builder
	fmt.Fprintf(&hosts, "127.0.0.1 localhost\n::1 localhost\n%v node\n", node4.Addr())
	for _, n := range names {
		fmt.Fprintf(&hosts, "%v %s\n", n.addr, n.name)
	}
	files := map[string]string{
		// Without an id systemd takes it for the first boot and enables all units.
		"etc/machine-id":                       id + "\n",
		"etc/hostname":                         "node\n",
		"etc/hosts":                            hosts.String(),
		"etc/resolv.conf":                      "# The box itself resolves no names.\n",
		"etc/systemd/journald.conf.d/lab.conf": journaldConfig,
		"etc/containerd/config.toml":           containerdConfig,
		"etc/cni/net.d/10-lab.conflist":        network,
	}
	if cfg.LiveRestore {
		files["etc/docker/daemon.json"] = `{"live-restore": true}` + "\n"
	}
	maps.Copy(files, cfg.Files)
	errs := []error{writeFile(dir, "usr/lib/cni/lab", fmt.Sprintf(cniPlugin, cfg.CNI), 0o755)}
	for path, content := range files {
		errs = append(errs, writeFile(dir, path, content, 0o644))
	}
	return id, errors.Join(errs...)
}

// writeFile writes a file under dir, and makes the directories on the way.
func writeFile(dir, path, content string, mode os.FileMode) error {
	if !filepath.IsLocal(path) {
		return fmt.Errorf("a file outside the root: %s", path)
	}
	path = filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), mode)
}

// cniConfig is the list of CNI plugins for the pods.
func cniConfig(cfg BoxConfig) (string, error) {
	type object = map[string]any
	type ipRange struct {
		Subnet string `json:"subnet"`
		First  string `json:"rangeStart"`
		Last   string `json:"rangeEnd"`
	}
	pods := cfg.PodRange
	if pods == 0 {
		pods = 200
	}
	if pods < 0 || pods > 200 {
		return "", fmt.Errorf("a range of %d pods", pods)
	}
	var ranges [][]ipRange
	var routes []object
	for _, f := range []struct{ subnet, all netip.Prefix }{{boxNet4, all4}, {boxNet6, all6}} {
		first, last := hostOf(f.subnet, 2), hostOf(f.subnet, uint16(pods+1))
		ranges = append(ranges, []ipRange{{f.subnet.String(), first.String(), last.String()}})
		routes = append(routes, object{"dst": f.all.String()})
	}
	plugin := object{
		"type": "lab",
		"ipam": object{"type": "host-local", "ranges": ranges, "routes": routes},
	}
	if cfg.CNI == Bridge {
		plugin["bridge"], plugin["isGateway"], plugin["hairpinMode"] = bridgeLink, true, true
	}
	b, err := json.MarshalIndent(object{"cniVersion": "1.0.0", "name": "lab", "plugins": []object{plugin}}, "", "  ")
	return string(b), err
}
