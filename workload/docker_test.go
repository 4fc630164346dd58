package workload

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// inspected is what Docker 20.10 answers to GET /containers/<id>/json, without
// what does not matter here: a pod of cri-dockerd, two plain containers.
var inspected = map[string]string{
	"pause": `{"Id":"pause","Name":"/k8s_POD_web","State":{"Running":true,"Pid":10,"StartedAt":"2026-01-02T03:04:05.5Z"},
		"Config":{"Labels":{"io.kubernetes.pod.name":"web","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"u1","io.kubernetes.container.name":"POD"}},
		"HostConfig":{"NetworkMode":"default"},
		"NetworkSettings":{"Networks":{"bridge":{"IPAddress":"172.17.0.2","GlobalIPv6Address":""}}}}`,
	"nginx": `{"Id":"nginx","Name":"/k8s_nginx_web","State":{"Running":true,"Pid":11,"StartedAt":"2026-01-02T03:04:06Z"},
		"Config":{"Labels":{"io.kubernetes.pod.name":"web","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"u1","io.kubernetes.container.name":"nginx"}},
		"HostConfig":{"NetworkMode":"container:pause"},"NetworkSettings":{"Networks":{}}}`,
	"plain": `{"Id":"plain","Name":"/registry","State":{"Running":true,"Pid":12,"StartedAt":"2026-01-02T03:04:07Z"},
		"Config":{"Labels":null},"HostConfig":{"NetworkMode":"two"},
		"NetworkSettings":{"Networks":{"b":{"IPAddress":"172.19.0.2","GlobalIPv6Address":"fd00::2"},"a":{"IPAddress":"172.18.0.9","GlobalIPv6Address":""}}}}`,
	"host": `{"Id":"host","Name":"/agent","State":{"Running":true,"Pid":13,"StartedAt":"2026-01-02T03:04:08Z"},
		"Config":{"Labels":{}},"HostConfig":{"NetworkMode":"host"},"NetworkSettings":{"Networks":{"host":{"IPAddress":""}}}}`,
	"exited": `{"Id":"exited","Name":"/old","State":{"Running":false},"Config":{},"HostConfig":{"NetworkMode":"default"},"NetworkSettings":{"Networks":{}}}`,
}

func TestDockerSandboxes(t *testing.T) {
	var all []dockerContainer
	for _, id := range []string{"nginx", "pause", "plain", "host", "exited"} {
		var c dockerContainer
		if err := json.Unmarshal([]byte(inspected[id]), &c); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	want := []sandbox{
		{
			id: "pause", namespace: "shop", name: "web", uid: "u1", pid: 10, created: epoch.Add(500 * time.Millisecond),
			addrs: []netip.Addr{netip.MustParseAddr("172.17.0.2")}, containers: []container{{"nginx", "nginx"}},
		},
		{
			id: "plain", pid: 12, created: after(2), containers: []container{{"plain", "registry"}},
			addrs: []netip.Addr{netip.MustParseAddr("172.18.0.9"), netip.MustParseAddr("172.19.0.2"), netip.MustParseAddr("fd00::2")},
		},
		{id: "host", host: true, pid: 13, created: after(3), containers: []container{{"host", "agent"}}},
	}
	if diff := cmp.Diff(want, dockerSandboxes(all), equateAddr, cmp.AllowUnexported(sandbox{}, container{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Docker is asked where there is no CRI.
func TestDocker(t *testing.T) {
	h := newHost(t)
	var mu sync.Mutex
	running := []string{"plain"}
	events := make(chan struct{}, 1)
	watched := make(chan struct{}, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		ids := running
		mu.Unlock()
		switch path := r.URL.Path; path {
		case "/version":
			_, _ = w.Write([]byte(`{"Version":"20.10.24"}`))
		case "/containers/json":
			// One of them ends before it is asked for.
			_, _ = w.Write([]byte(`[{"Id":"ended"},{"Id":"` + strings.Join(ids, `"},{"Id":"`) + `"}]`))
		case "/events":
			_ = http.NewResponseController(w).Flush()
			watched <- struct{}{}
			for {
				select {
				case <-events:
					_, _ = w.Write([]byte(`{"Type":"container","Action":"start"}` + "\n"))
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return
				}
			}
		default:
			text, ok := inspected[strings.TrimSuffix(strings.TrimPrefix(path, "/containers/"), "/json")]
			if !ok {
				http.Error(w, `{"message":"No such container"}`, http.StatusNotFound)
				return
			}
			_, _ = w.Write([]byte(text))
		}
	})}
	l := h.socket("run/docker.sock")
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // until it is closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	var gone farewells
	f := h.finder(Config{Gone: gone.add})
	// Nothing is asked for that is not known: a miss would have the finder look again.
	if got := pods(f, "172.19.0.2"); got != "/registry" || f.Alive(Workload{Namespace: "shop", Pod: "web"}) {
		t.Errorf("at the start: %q, or a pod is alive that does not run yet", got)
	}
	<-watched
	mu.Lock()
	running = []string{"pause", "nginx"}
	mu.Unlock()
	events <- struct{}{}
	// The event alone brings it so soon.
	until(t, "the pod", func() bool { return f.Alive(Workload{Namespace: "shop", Pod: "web"}) })
	if got := pods(f, "172.17.0.2"); got != "web/nginx" || f.Alive(Workload{Container: "registry"}) {
		t.Errorf("the pod that runs is %q, or the container that ended is alive", got)
	}
	until(t, "word of the container's end", func() bool { return gone.has("") })
}
