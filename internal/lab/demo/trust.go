package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nodestead/nodestead/internal/lab"
)

const (
	registryName     = "docker-registry.example.de" // none of the names that the pods look up
	unknownAuthority = "x509: certificate signed by unknown authority"
)

// trustStage is the node with a private registry, whose CA it does not know.
type trustStage struct {
	*stage
	path   string // of the agent
	image  string
	source string // the mounted Secret
	agent  *agent
	pid    int // of a container that runs all the time
	before map[string]lab.FileState
	fresh  *lab.CA // the second CA
}

// addRegistry makes a registry with a CA of its own.
func (s *stage) addRegistry() error {
	var err error
	if s.ca, err = lab.NewCA("Example private root"); err != nil {
		return err
	}
	cert, err := s.ca.Server(registryName)
	if err != nil {
		return err
	}
	s.registry, err = s.AddRegistry(registryName, cert)
	return err
}

// trustScene is one thing that happens to the node's trust.
type trustScene struct {
	title, story string
	play         func(*trustStage) error
}

var trustScenes = []trustScene{
	{
		"dockerd does not trust the private registry",
		"The registry's certificate comes from a CA of the company's own. Somebody puts that CA into the Secret, and\ndoes nothing else. dockerd has live-restore on; without it the restart would be pending, and the log would say so.\nOn the node runs: nodestead trust",
		(*trustStage).playStory,
	},
	{
		"The registry turns to another CA, and is named in the settings",
		"The new CA comes into the Secret beside the old one. In certs.d the daemons find it at the next access.\nOn the node runs: nodestead trust --trust.registries docker-registry.example.de:5000",
		(*trustStage).playRotation,
	},
	{
		"All of it is taken back",
		"nodestead trust --uninstall",
		(*trustStage).playUninstall,
	},
}

// trustPlaces are where the agent installs.
var trustPlaces = []string{"/usr/local/share/ca-certificates", "/etc/ssl/certs/ca-certificates.crt", "/etc/docker", "/etc/containerd", "/var/lib/nodestead"}

// playTrust plays the scenes of trust, numbered from the one after the last, and
// tells how many there are.
func (s *stage) playTrust(last int, path string) (int, error) {
	t := &trustStage{stage: s, path: path, source: filepath.Join(s.Dir(), "secret")}
	if err := t.build(); err != nil {
		return 0, err
	}
	for i, scene := range trustScenes {
		fmt.Fprintf(s.out, "\n── %d. %s\n%s\n", last+i+1, scene.title, scene.story)
		if err := scene.play(t); err != nil {
			if t.agent != nil {
				err = errors.Join(err, t.agent.kill())
			}
			return 0, fmt.Errorf("scene %d: %w", last+i+1, err)
		}
	}
	return len(trustScenes), nil
}

func (t *trustStage) build() error {
	var err error
	if t.image, err = t.registry.Push(t.ctx, "team/app:1"); err != nil {
		return err
	}
	if err = os.Mkdir(t.source, 0o755); err != nil {
		return err
	}
	if err = t.box.StartDocker(t.ctx); err != nil {
		return err
	}
	if t.pid, err = t.box.RunContainer(t.ctx, "build"); err != nil {
		return err
	}
	t.before, err = t.box.Snapshot(trustPlaces...)
	return err
}

// trust runs the half that sees to trust.
func (t *trustStage) trust(args ...string) (err error) {
	args = append([]string{"trust", "--http.trust", trustAddress, "--host_root", t.box.Root(), "--trust.sources", t.source}, args...)
	t.agent, err = startAgent(t.ctx, t.Node(), trustAddress, t.path, args...)
	return err
}

func (t *trustStage) stop() error {
	_, err := t.agent.stop()
	t.agent = nil
	return err
}

// give puts CAs into the Secret.
func (t *trustStage) give(name string, ca *lab.CA) error {
	temp := filepath.Join(t.source, "..new")
	return errors.Join(os.WriteFile(temp, ca.PEM(), 0o644), os.Rename(temp, filepath.Join(t.source, name)))
}

func (t *trustStage) say(who, format string, args ...any) {
	fmt.Fprintf(t.out, "  %-10s │ %s\n", who, fmt.Sprintf(format, args...))
}

// refused has docker pull, and be refused.
func (t *trustStage) refused() error {
	text := "the image"
	if err := t.box.Pull(t.ctx, t.image); err != nil {
		text = err.Error()
	}
	if !strings.Contains(text, unknownAuthority) {
		return fmt.Errorf("docker pull %s gave %s, want that it is refused", t.image, text)
	}
	t.say("docker", "docker pull %s: …%s", t.image, strings.TrimSpace(text[strings.Index(text, unknownAuthority)-len(": "):]))
	return nil
}

// pulls waits until docker can pull, and tells how long after begin that was.
func (t *trustStage) pulls(begin time.Time) error {
	err := t.agent.until(t.ctx, patience, func() error { return t.box.Pull(t.ctx, t.image) })
	if err != nil {
		return err
	}
	t.say("docker", "docker pull %s: done, %.1f s after the CA came", t.image, time.Since(begin).Seconds())
	_, err = t.box.Run(t.ctx, "docker", "image", "rm", t.image)
	return err
}

// kept checks that the container is still the same process.
func (t *trustStage) kept() error {
	pid, err := t.box.ContainerPid(t.ctx, "build")
	if err == nil && pid != t.pid {
		err = fmt.Errorf("the container is process %d, and was %d", pid, t.pid)
	}
	if err == nil {
		t.say("docker", "the container that was running kept its pid, %d", pid)
	}
	return err
}

// shown prints the lines of the agent's log that have one of the parts, and the
// metrics of these names.
func (t *trustStage) shown(from int, parts []string, metrics ...string) error {
	for _, l := range t.agent.logged(from) {
		if slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(l, p) }) {
			_, text, _ := strings.Cut(l, " ")
			t.say("the log", "%s", text)
		}
	}
	values, err := t.agent.metrics()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if slices.ContainsFunc(metrics, func(m string) bool { return strings.HasPrefix(name, "nodestead_"+m) }) && values[name] > 0 {
			t.say("metrics", "%s %g", name, values[name])
		}
	}
	return nil
}

// restarts is how often the agent says that it restarted a daemon.
func (t *trustStage) restarts() (float64, error) {
	values, err := t.agent.metrics()
	return values.sum("runtime_restarts_total"), err
}

func (t *trustStage) playStory() error {
	if err := t.refused(); err != nil {
		return err
	}
	docker, err := t.box.Unit(t.ctx, "docker.service")
	if err != nil {
		return err
	}
	if err := t.trust(); err != nil {
		return err
	}
	begin := time.Now()
	if err := errors.Join(t.give("ca.crt", t.ca), t.pulls(begin), t.kept()); err != nil {
		return err
	}
	// dockerd first, containerd beside it: each once.
	err = t.agent.until(t.ctx, patience, func() error {
		n, err := t.restarts()
		if err == nil && n != 2 {
			err = fmt.Errorf("%g restarts, want one of docker and one of containerd", n)
		}
		return err
	})
	if err != nil {
		return err
	}
	now, err := t.box.Unit(t.ctx, "docker.service")
	if err == nil && now.InvocationID == docker.InvocationID {
		err = errors.New("docker was not restarted")
	}
	return errors.Join(err, t.shown(0, []string{"trust anchors were", "daemon was restarted"}, "trust_in_sync", "runtime_restarts_total", "ca_not_after"), t.stop())
}

func (t *trustStage) playRotation() error {
	var err error
	if t.fresh, err = lab.NewCA("Example private root 2"); err != nil {
		return err
	}
	cert, err := t.fresh.Server(registryName)
	if err != nil {
		return err
	}
	t.registry.Serve(cert)
	if err := t.refused(); err != nil {
		return err
	}
	units := func() (ids [2]string, err error) {
		for i, name := range []string{"docker.service", "containerd.service"} {
			u, unitErr := t.box.Unit(t.ctx, name)
			ids[i], err = u.InvocationID, errors.Join(err, unitErr)
		}
		return ids, err
	}
	before, err := units()
	if err != nil {
		return err
	}
	if err := t.trust("--trust.registries", t.registry.Host); err != nil {
		return err
	}
	begin := time.Now()
	if err := errors.Join(t.give("ca-2.crt", t.fresh), t.pulls(begin)); err != nil {
		return err
	}
	if err := t.agent.until(t.ctx, patience, func() error { return t.box.CRIPull(t.ctx, t.image) }); err != nil {
		return err
	}
	t.say("containerd", "pulled by CRI, as the kubelet does")
	err = t.agent.until(t.ctx, patience, func() error {
		values, err := t.agent.metrics()
		if got := values.sum("registry_trusted"); err == nil && got != 2 {
			err = fmt.Errorf("registry_trusted is %g, want that of two daemons", got)
		}
		return err
	})
	if err != nil {
		return err
	}
	after, err := units()
	if err == nil && after != before {
		err = errors.New("a daemon was restarted, although its certs.d has the CA")
	}
	if err != nil {
		return err
	}
	t.say("systemd", "no daemon was restarted")
	return errors.Join(t.kept(), t.shown(0, []string{"trust anchors were"}, "registry_trusted", "trust_in_sync"), t.stop())
}

func (t *trustStage) playUninstall() error {
	ctx, cancel := context.WithTimeout(t.ctx, patience)
	defer cancel()
	a, err := runAgent(ctx, t.Node(), t.path, "trust", "--uninstall", "--host_root", t.box.Root(), "--trust.sources", t.source)
	if err != nil {
		return err
	}
	for _, l := range a {
		_, text, _ := strings.Cut(l, " ")
		t.say("the log", "%s", text)
	}
	after, err := t.box.Snapshot(trustPlaces...)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(t.before)) {
		if is, ok := after[name]; !ok || is != t.before[name] {
			return fmt.Errorf("%s is not what it was: %+v, was %+v", name, is, t.before[name])
		}
	}
	var left strings.Builder
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if _, ok := t.before[name]; ok {
			continue
		}
		if !strings.HasSuffix(name, "/certs.d") {
			return fmt.Errorf("%s is left", name)
		}
		left.WriteString(", " + name)
	}
	t.say("the node", "all files there are byte for byte what they were; left are empty directories: %s", strings.TrimPrefix(left.String(), ", "))
	return nil
}
