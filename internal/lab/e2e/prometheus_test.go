//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodestead/nodestead/internal/lab"
)

// scrapeConfig is the part of the configuration of Prometheus that operators are
// told to use.
var scrapeConfig = regexp.MustCompile("(?s)```yaml\n(scrape_configs:\n.*?)```")

// prometheus runs a real Prometheus until the test ends. It is configured as
// docs/operate.md has it; its rules are those that are shipped. Debian builds it
// without the discovery of Kubernetes' pods, so that it is told about all pods there
// are, with the labels that the discovery gives.
func (c *cluster) prometheus() {
	t := c.t
	page, err := os.ReadFile("../../../docs/operate.md")
	c.must(err)
	config := scrapeConfig.FindSubmatch(page)
	if config == nil {
		t.Fatal("docs/operate.md has no scrape_configs")
	}
	const finds = "kubernetes_sd_configs: [{role: pod}]"
	if !strings.Contains(string(config[1]), finds) {
		t.Fatalf("docs/operate.md does not have %s", finds)
	}
	rules, err := filepath.Abs("../../../deploy/alerts/nodestead.rules.yaml")
	c.must(err)
	targets, err := json.Marshal(c.targets())
	c.must(err)
	text := "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: [" + rules + "]\n" +
		strings.Replace(string(config[1]), finds, "file_sd_configs: [{files: [targets.json]}]", 1)
	kill, err := c.lab.StartPrometheus(t.TempDir(), map[string]string{"targets.json": string(targets), "prometheus.yml": text})
	c.must(err)
	t.Cleanup(func() {
		switch log, err := kill(); {
		case err != nil:
			t.Error(err)
		case t.Failed():
			t.Log("Prometheus' log: " + log)
		}
	})
}

// target is one of those that Prometheus' discovery of pods finds: a port of a
// container.
type target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// invalid are the characters that no label of Prometheus has.
var invalid = regexp.MustCompile(`[^a-zA-Z0-9_]`)

// targets are those of all pods of the cluster.
func (c *cluster) targets() (all []target) {
	c.t.Helper()
	var list corev1.PodList
	c.must(json.Unmarshal([]byte(c.kubectl("get", "pods", "--all-namespaces", "--output=json")), &list))
	for _, p := range list.Items {
		for _, container := range p.Spec.Containers {
			for _, port := range container.Ports {
				number := strconv.Itoa(int(port.ContainerPort))
				labels := map[string]string{
					"__meta_kubernetes_namespace":                 p.Namespace,
					"__meta_kubernetes_pod_name":                  p.Name,
					"__meta_kubernetes_pod_node_name":             p.Spec.NodeName,
					"__meta_kubernetes_pod_container_name":        container.Name,
					"__meta_kubernetes_pod_container_port_name":   port.Name,
					"__meta_kubernetes_pod_container_port_number": number,
				}
				for name, value := range p.Labels {
					labels["__meta_kubernetes_pod_label_"+invalid.ReplaceAllString(name, "_")] = value
				}
				all = append(all, target{[]string{net.JoinHostPort(p.Status.PodIP, number)}, labels})
			}
		}
	}
	return all
}

// series is one of those that an expression gives.
type series struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"` // the time, and the number as text
}

// asked is what Prometheus' API answers.
func (c *cluster) asked(path string, data any) error {
	resp, err := c.lab.Node().HTTPClient().Get("http://" + lab.PrometheusAddress + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(&struct{ Data any }{data})
}

// result are the series of an expression now.
func (c *cluster) result(expr string) []series {
	c.t.Helper()
	var got struct{ Result []series }
	c.must(c.asked("/api/v1/query?"+url.Values{"query": {expr}}.Encode(), &got))
	return got.Result
}

// value is the number that an expression is now.
func (c *cluster) value(expr string) float64 {
	c.t.Helper()
	got := c.result(expr)
	if len(got) != 1 {
		c.t.Fatalf("%s is %v", expr, got)
	}
	v, err := strconv.ParseFloat(fmt.Sprint(got[0].Value[1]), 64)
	c.must(err)
	return v
}

// measured waits until Prometheus has an answer to an expression, and returns the
// labels of the first of its series.
func (c *cluster) measured(expr string) (labels map[string]string) {
	c.t.Helper()
	c.until(func() error {
		got := c.result(expr)
		if len(got) == 0 {
			return fmt.Errorf("Prometheus has nothing of %s", expr)
		}
		labels = got[0].Metric
		return nil
	})
	return labels
}

// alert is what Prometheus says of one.
type alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	State       string            `json:"state"`
	ActiveAt    time.Time         `json:"activeAt"`
}

// fires waits until an alert fires about this namespace.
func (c *cluster) fires(name, namespace string) (a alert) {
	c.t.Helper()
	c.until(func() error {
		var got struct{ Alerts []alert }
		if err := c.asked("/api/v1/alerts", &got); err != nil {
			return err
		}
		for _, a = range got.Alerts {
			if a.State == "firing" && a.Labels["alertname"] == name && a.Labels["namespace"] == namespace {
				return nil
			}
		}
		return fmt.Errorf("%s does not fire: %+v", name, got.Alerts)
	})
	return a
}

// scraped proves that Prometheus has found the agents by itself, and knows the
// incidents as theirs who had them.
func (c *cluster) scraped() {
	t := c.t
	for _, expr := range []string{
		`nodestead_dns_lookup_timeouts_total{namespace="ci", pod="` + job + `", resolver="musl", cause="orphaned_answer", node="node"} > 0`,
		`nodestead_dns_lookup_timeouts_total{namespace="ci", pod="` + job + `", resolver="musl", cause="dropped_on_node", node="node"} > 0`,
		`nodestead_dns_lookup_timeouts_total{namespace="ci", pod="cached", resolver="musl", cause="slow_answer", node="node"} > 0`,
		`max_over_time(nodestead_sensor_blind{sensor="conntrack", reason="notrack", node="node"}[1h]) == 1`,
		`nodestead_sensor_blind{sensor="conntrack", reason="notrack", node="node"} == 0`,
		`nodestead_trust_in_sync{target="store", node="node"} == 1`,
		`nodestead_registry_trusted{runtime="docker", registry="` + c.registry.Host + `", node="node"} == 1`,
		// Neither the agent's own pod nor its namespace is in them.
		`absent(nodestead_dns_lookups_total{namespace="nodestead"})`,
		`absent(nodestead_trust_in_sync{pod!=""})`,
	} {
		c.measured(expr)
	}
	a := c.fires("NodesteadLookupsLost", "ci")
	if !has(a.Annotations["description"], "by pod "+job+" on node") || !has(a.Annotations["runbook_url"], "docs/causes.md#"+a.Labels["cause"]) {
		t.Errorf("the alert says %+v", a)
	}
	text, err := json.MarshalIndent(a, "", "  ")
	c.must(err)
	c.quote("curl -s http://prometheus:9090/api/v1/alerts | jq '.data.alerts[]'", string(text))
}

// pages proves that the status pages, as the API server passes them on, tell of the
// incidents and of the CA.
func (c *cluster) pages() {
	name := c.kubectl("get", "pods", "--namespace="+agentNamespace, "--selector=app.kubernetes.io/name=nodestead", "--output=jsonpath={.items[0].metadata.name}")
	for port, want := range map[string][]string{
		"9853": {job, "orphaned_answer", "git", "node"},
		"9854": {"Example private root", c.registry.Host, "docker"},
	} {
		page := c.kubectl("get", "--raw=/api/v1/namespaces/"+agentNamespace+"/pods/"+name+":"+port+"/proxy/")
		for _, w := range want {
			if !strings.Contains(page, w) {
				c.t.Errorf("the page on %s does not have %s:\n%s", port, w, page)
			}
		}
	}
}
