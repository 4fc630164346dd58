package daemon

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodestead/nodestead/certsync/host"
)

// listenUnix listens where a node has a socket.
func listenUnix(t *testing.T, h *host.Host, name string) net.Listener {
	t.Helper()
	path := h.Socket(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// fakeDocker answers each path of docker's API with a status and a body.
func fakeDocker(t *testing.T, h *host.Host, answers map[string]string) {
	t.Helper()
	l := listenUnix(t, h, "/run/docker.sock")
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		if !ok {
			t.Errorf("somebody asked docker for %s", r.URL)
		}
		if answer == "" {
			<-r.Context().Done()
			return
		}
		if rest, ok := strings.CutPrefix(answer, "500 "); ok {
			w.WriteHeader(http.StatusInternalServerError)
			answer = rest
		}
		_, _ = io.WriteString(w, answer)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		_ = s.Close()
		serving.Wait()
	})
}

// fakeCRI is a CRI runtime that pulls nothing.
type fakeCRI struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	config string
	pull   error
	asked  chan string
}

func (f *fakeCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "fake", RuntimeVersion: "v2.0.1"}, nil
}

func (f *fakeCRI) Status(_ context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	if !r.Verbose || f.config == "" {
		return &cri.StatusResponse{}, nil
	}
	return &cri.StatusResponse{Info: map[string]string{"config": f.config}}, nil
}

func (f *fakeCRI) PullImage(_ context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	f.asked <- r.Image.Image
	return &cri.PullImageResponse{}, f.pull
}

// serveCRI serves a runtime; without one the socket is that of a containerd whose
// CRI is off.
func serveCRI(t *testing.T, h *host.Host, socket string, f *fakeCRI) {
	t.Helper()
	l := listenUnix(t, h, socket)
	s := grpc.NewServer()
	if f != nil {
		cri.RegisterRuntimeServiceServer(s, f)
		cri.RegisterImageServiceServer(s, f)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		serving.Wait()
	})
}

func TestLookDocker(t *testing.T) {
	cfg := Config{Name: Docker, Unit: "docker.service"}
	noSystemd := host.ErrNoSystemd.Error()
	certDirs := []string{"/etc/docker/certs.d"}
	for _, tc := range []struct {
		info string
		want Facts
		err  string
	}{
		{
			`{"ServerVersion":"28.2.2","LiveRestoreEnabled":true,"ContainersRunning":2,"ContainersPaused":1,"ContainersStopped":7}`,
			Facts{Present: true, NoUnit: noSystemd, Healthy: true, Version: "28.2.2", LiveRestore: true, Containers: 3, CertDirs: certDirs}, "",
		},
		{`{"ServerVersion":"20.10.24"}`, Facts{Present: true, NoUnit: noSystemd, Healthy: true, Version: "20.10.24", CertDirs: certDirs}, ""},
		{`500 {"message":"no"}`, Facts{Present: true, NoUnit: noSystemd, CertDirs: certDirs}, "GET /info: status 500"},
		{`<html>`, Facts{Present: true, NoUnit: noSystemd, CertDirs: certDirs}, "GET /info: status 200"},
	} {
		h := root(t, nil)
		fakeDocker(t, h, map[string]string{"/info": tc.info})
		got, err := Look(t.Context(), h, nil, cfg, "docker.service")
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tc.info, diff)
		}
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v, want %q", tc.info, err, tc.err)
		}
	}
	h := root(t, nil)
	if got, err := Look(t.Context(), h, nil, cfg, "docker.service"); err != nil || got.Present {
		t.Errorf("no docker: %+v, %v", got, err)
	}
	l := listenUnix(t, h, "/run/docker.sock")
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := Look(t.Context(), h, nil, cfg, "docker.service"); err == nil || !got.Present || got.Healthy {
		t.Errorf("a socket of nobody: %+v, %v", got, err)
	}
}

func TestLookCRI(t *testing.T) {
	for _, tc := range []struct {
		name   string
		daemon Name
		fake   *fakeCRI
		file   string
		want   Facts // of what CRI tells
	}{
		{"of the status", Containerd, &fakeCRI{config: `{"registry":{"configPath":"/a:/b"}}`}, configV2, Facts{Version: "v2.0.1", CertDirs: []string{"/a", "/b"}}},
		{"the status has none", Containerd, &fakeCRI{config: `{"registry":{"configPath":""}}`}, configV2, Facts{Version: "v2.0.1", CertDirsWhy: "containerd has no config_path: " + setConfigPath}},
		{"of the file", Containerd, &fakeCRI{config: `{"containerd":{}}`}, configV3, Facts{Version: "v2.0.1", CertDirs: []string{"/three"}}},
		{"of the file, and no status", Containerd, &fakeCRI{}, configV2, Facts{Version: "v2.0.1", CertDirs: []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}}},
		{"no file", Containerd, &fakeCRI{}, "", Facts{Version: "v2.0.1", CertDirsWhy: "containerd has no config_path: " + setConfigPath}},
		{"CRI is off", Containerd, nil, configV2, Facts{NoCRI: true, CertDirsWhy: "its CRI is off, so it pulls nothing itself"}},
		{"CRI-O", CRIO, &fakeCRI{config: `{"registry":{"configPath":"/a"}}`}, configV2, Facts{Version: "v2.0.1", CertDirs: []string{"/etc/containers/certs.d"}}},
	} {
		files := map[string]string{}
		if tc.file != "" {
			files["etc/containerd/config.toml"] = tc.file
		}
		h := root(t, files)
		serveCRI(t, h, tc.daemon.socket(), tc.fake)
		tc.want.Present, tc.want.Healthy, tc.want.NoUnit = true, true, host.ErrNoSystemd.Error()
		got, err := Look(t.Context(), h, nil, Config{Name: tc.daemon}, "docker.service")
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", tc.name, err, diff)
		}
	}
	h := root(t, map[string]string{"etc/containerd/config.toml": "version ="})
	serveCRI(t, h, Containerd.socket(), &fakeCRI{})
	got, err := Look(t.Context(), h, nil, Config{Name: Containerd}, "")
	if err != nil || got.CertDirs != nil || !strings.HasPrefix(got.CertDirsWhy, "/etc/containerd/config.toml: parse: ") {
		t.Errorf("a broken file: %+v, %v", got, err)
	}
}

func TestAskDocker(t *testing.T) {
	const path = "/distribution/reg.test:5000/nodestead/trust-check/json"
	for _, tc := range []struct {
		answer string
		want   Verdict
		text   string
	}{
		{`{"Descriptor":{}}`, Trusted, "there is such an image"},
		{`500 {"message":"Get \"https://reg.test:5000/v2/\": x509: certificate signed by unknown authority"}`, Untrusted, `Get "https://reg.test:5000/v2/": x509: certificate signed by unknown authority`},
		{`500 {"message":"manifest unknown: manifest unknown"}`, Trusted, "manifest unknown: manifest unknown"},
		{`500 {}`, Unclear, "docker gave no answer: status 500 without a message"},
		{`500 <html>x509: certificate signed by unknown authority`, Unclear, "docker gave no answer: GET " + path + ": status 500: invalid character '<' looking for beginning of value"},
		{`500 {"message":"page not found"}`, Unclear, "page not found"},
	} {
		h := root(t, nil)
		fakeDocker(t, h, map[string]string{path: tc.answer})
		got := Ask(t.Context(), h, Docker, "reg.test:5000")
		if age := time.Since(got.At); age < 0 || age > time.Minute {
			t.Errorf("asked %v ago", age)
		}
		got.At = time.Time{}
		if diff := cmp.Diff(Answer{Registry: "reg.test:5000", Verdict: tc.want, Text: tc.text}, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tc.answer, diff)
		}
	}
	h := root(t, nil)
	if got := Ask(t.Context(), h, Docker, "reg.test:5000"); got.Verdict != Unclear || !strings.Contains(got.Text, "no such file") {
		t.Errorf("no docker: %+v", got)
	}
	fakeDocker(t, h, map[string]string{path: ""}) // and nothing else may be asked
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if got := Ask(ctx, h, Docker, "reg.test:5000"); got.Verdict != Unclear || got.Text != "docker did not answer within 10s" {
		t.Errorf("docker hangs: %+v", got)
	}
	for _, registry := range []string{"library", "reg.test:5000/x/y/json?", "", "../info?x=reg.test:5000"} {
		if got := Ask(t.Context(), h, Docker, registry); got.Verdict != Unclear || !strings.Contains(got.Text, "is no registry") {
			t.Errorf("%q: %+v", registry, got)
		}
	}
}

func TestAskCRI(t *testing.T) {
	const image = "reg.test:5000/nodestead/trust-check@" + noDigest
	for _, tc := range []struct {
		err  error
		want Verdict
		text string
	}{
		{status.Error(codes.Unknown, "a: x509: certificate signed by unknown authority"), Untrusted, "a: x509: certificate signed by unknown authority"},
		{status.Error(codes.NotFound, image+": not found"), Trusted, "reg.test:5000/nodestead/trust-check@sha256:0: not found"},
		{status.Error(codes.Unavailable, "x509: certificate signed by unknown authority"), Unclear, "containerd gave no answer: rpc error: code = Unavailable desc = x509: certificate signed by unknown authority"},
		{nil, Trusted, "there is such an image"},
	} {
		h := root(t, nil)
		f := &fakeCRI{pull: tc.err, asked: make(chan string, 1)}
		serveCRI(t, h, Containerd.socket(), f)
		got := Ask(t.Context(), h, Containerd, "reg.test:5000")
		got.At = time.Time{}
		if diff := cmp.Diff(Answer{Registry: "reg.test:5000", Verdict: tc.want, Text: tc.text}, got); diff != "" {
			t.Errorf("%v (-want +got)\n%s", tc.err, diff)
		}
		if asked := <-f.asked; asked != image {
			t.Errorf("it was asked for %s", asked)
		}
	}
	h := root(t, nil)
	serveCRI(t, h, CRIO.socket(), nil)
	if got := Ask(t.Context(), h, CRIO, "reg.test:5000"); got.Verdict != Unclear || !strings.Contains(got.Text, "unknown service") {
		t.Errorf("CRI is off: %+v", got)
	}
}
