//go:build e2e

package deploy

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/nodestead/nodestead/internal/lab"
)

var helmVersions = []string{"3", "4"}

// TestKubernetesHelmRenders: both helms render the chart as the library does by which
// it is tested, and have nothing against it.
func TestKubernetesHelmRenders(t *testing.T) {
	l := lab.ForTest(t)
	full := map[string]any{}
	for _, s := range switches(t) {
		set(full, s[1])
	}
	for _, version := range helmVersions {
		path, err := l.Helm(version)
		if err != nil {
			t.Fatal(err)
		}
		helm := func(values map[string]any, args ...string) []byte {
			t.Helper()
			file := filepath.Join(t.TempDir(), "values.yaml")
			data, err := yaml.Marshal(values)
			if err == nil {
				err = os.WriteFile(file, data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), path, append(args, "--values", file, "--kube-version", "1.34.2", "--namespace", "nodestead")...)
			cmd.Env = []string{"HOME=" + t.TempDir()}
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("helm %s %q: %v\n%s%s", version, args, err, stdout.Bytes(), stderr.Bytes())
			}
			return stdout.Bytes()
		}
		helm(full, "lint", "--strict", chartPath)
		for _, r := range renderAll(t, []rendering{{}, {Values: full}, {Values: parse(t, configText)}, {Values: parse(t, "{trust: {enabled: false}}")}}) {
			want := make(map[string]any)
			for _, object := range r.Objects {
				want[name(t, object)] = normal(t, object)
			}
			got := make(map[string]any)
			for _, data := range documents(t, helm(r.Values, "template", "nodestead", chartPath)) {
				var object map[string]any
				if err := json.Unmarshal(data, &object); err != nil {
					t.Fatal(err)
				}
				got[name(t, data)] = normal(t, object)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%v (-library +helm %s):\n%s", r.Values, version, diff)
			}
		}
	}
}

// name is what an object is called in a message.
func name(t *testing.T, object json.RawMessage) string {
	t.Helper()
	var head struct {
		Kind     string
		Metadata struct{ Name string }
	}
	if err := json.Unmarshal(object, &head); err != nil {
		t.Fatal(err)
	}
	return head.Kind + "/" + head.Metadata.Name
}

// TestKubernetesSlotsSurviveUpgrades: whoever holds a slot of restarts holds it after
// any way of installing again what is there. Otherwise a second node would restart
// its daemon at the same time.
func TestKubernetesSlotsSurviveUpgrades(t *testing.T) {
	l := lab.ForTest(t)
	box, err := l.Boot(t.Context(), lab.BoxConfig{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := box.StartKubernetes(t.Context(), lab.KubernetesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	kubectl := func(args ...string) string { t.Helper(); return must(k.Kubectl(t.Context(), args...)) }
	helm := func(version string, args ...string) {
		t.Helper()
		// No node has this label: no pod is needed here, and so no image.
		must(k.Helm(t.Context(), version, append(args, "--namespace=nodestead", "--set=nodeSelector.none=none")...))
	}
	hold := func() {
		t.Helper()
		kubectl("-n", "nodestead", "patch", "lease", "nodestead-restart-0", "--field-manager=nodestead", "--type=merge",
			`--patch={"spec":{"holderIdentity":"node_ABC","leaseDurationSeconds":300,"leaseTransitions":7}}`)
	}
	held := func(after string) {
		t.Helper()
		got := kubectl("-n", "nodestead", "get", "lease", "nodestead-restart-0", "--output=jsonpath={.spec.holderIdentity} {.spec.leaseTransitions} {.metadata.labels.app\\.kubernetes\\.io/version}")
		if want := "node_ABC 7"; !strings.HasPrefix(got, want) {
			t.Errorf("after %s: %s, want %s", after, got, want)
		}
		t.Logf("after %s: %s", after, got)
	}
	chart, err := filepath.Abs(chartPath)
	if err != nil {
		t.Fatal(err)
	}
	// The next version has other labels on each object.
	next := filepath.Join(t.TempDir(), "chart")
	if err := os.CopyFS(next, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	about, err := os.ReadFile(filepath.Join(chart, "Chart.yaml"))
	if err == nil {
		err = os.WriteFile(filepath.Join(next, "Chart.yaml"), bytes.ReplaceAll(about, []byte("0.1.0"), []byte("0.2.0")), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}

	for _, version := range helmVersions {
		helm(version, "install", "nodestead", chart, "--create-namespace")
		hold()
		for _, other := range helmVersions {
			helm(other, "upgrade", "nodestead", next, "--set=config.trust.restarts.concurrency=3")
			held("helm " + version + ", and an upgrade by helm " + other)
			helm(other, "upgrade", "nodestead", chart)
			held("helm " + version + ", and the way back by helm " + other)
		}
		if got := kubectl("-n", "nodestead", "get", "leases", "--output=name"); got != "lease.coordination.k8s.io/nodestead-restart-0\n" {
			t.Errorf("leases: %s", got)
		}
		must(k.Helm(t.Context(), version, "rollback", "nodestead", "2", "--namespace=nodestead"))
		held("a rollback by helm " + version)
		must(k.Helm(t.Context(), version, "uninstall", "nodestead", "--namespace=nodestead", "--wait"))
	}

	kubectl("delete", "namespace", "nodestead")
	manifest, err := os.ReadFile(manifestPath)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(manifest), "kubernetes.io/os: linux", "none: none", 1)
	must("", k.Apply(t.Context(), text))
	hold()
	must("", k.Apply(t.Context(), strings.ReplaceAll(text, "0.1.0", "0.2.0")))
	held("kubectl apply")
	if err := os.WriteFile(filepath.Join(box.Root(), "tmp", manifestPath), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl("apply", "--server-side", "--force-conflicts", "--filename=/tmp/"+manifestPath)
	held("kubectl apply --server-side")
}
