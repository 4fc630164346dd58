package cluster

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// seen is a request as the server got it.
type seen struct {
	Method, Path, ContentType, Accept, Token string
	body                                     []byte
}

// server answers each request by answer, and keeps it.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	got    []seen
	answer func(http.ResponseWriter, *http.Request)
}

func newServer(t *testing.T, answer func(http.ResponseWriter, *http.Request)) *server {
	s := &server{answer: answer}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.got = append(s.got, seen{
			Method: r.Method, Path: r.URL.Path, ContentType: r.Header.Get("Content-Type"), Accept: r.Header.Get("Accept"),
			Token: strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), body: body,
		})
		s.mu.Unlock()
		s.answer(w, r)
	}))
	s.Config.ErrorLog = log.New(t.Output(), "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) requests() []seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got
}

// account writes a service account for a server.
func account(t *testing.T, s *httptest.Server) string {
	dir := t.TempDir()
	write(t, dir, "namespace", "nodestead\n")
	write(t, dir, "token", "first\n")
	write(t, dir, "ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	return dir
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func dial(t *testing.T, s *server) *Client {
	t.Helper()
	c, err := newClient(s.URL, account(t, s.Server))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func says(code int, body string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func status(code int, reason string) string {
	b, _ := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Reason: metav1.StatusReason(reason), Message: "it says " + reason, Code: int32(code),
	})
	return string(b)
}

// strictly decodes an object as the API server does, refuses what it does not
// know, and proves that nothing was lost by the wrong spelling.
func strictly(t *testing.T, data []byte, into any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	again, err := json.Marshal(into)
	if err != nil {
		t.Fatal(err)
	}
	var want, got map[string]any
	if err := errors.Join(json.Unmarshal(data, &want), json.Unmarshal(again, &got)); err != nil {
		t.Fatal(err)
	}
	for key := range want {
		if _, ok := got[key]; !ok {
			t.Errorf("%s is not how the API spells it", key)
		}
	}
}

const leaseJSON = `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease",
	"metadata":{"name":"nodestead-restart-0","namespace":"nodestead","resourceVersion":"7","uid":"u","labels":{"team":"a"},"annotations":{"n":"1"},"generation":12345678901234567},
	"spec":{"holderIdentity":"node-a_x","leaseDurationSeconds":300,"acquireTime":"2026-01-02T03:04:05.000006Z","renewTime":"2026-01-02T03:05:05.000006Z","leaseTransitions":4}}`

func TestLeaseRequests(t *testing.T) {
	s := newServer(t, says(http.StatusOK, leaseJSON))
	c := dial(t, s)
	read, err := c.Get(t.Context(), "nodestead-restart-0")
	if err != nil {
		t.Fatal(err)
	}
	acquired := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	want := Lease{
		Name: "nodestead-restart-0", Version: "7", Holder: "node-a_x", TTL: 5 * time.Minute,
		Acquired: acquired, Renewed: acquired.Add(time.Minute), Transitions: 4,
	}
	bare := read
	bare.object = nil
	if diff := cmp.Diff(want, bare, cmp.AllowUnexported(Lease{})); diff != "" {
		t.Errorf("the lease (-want +got):\n%s", diff)
	}
	now := time.Date(2026, 1, 2, 4, 0, 0, 0, time.FixedZone("", 3600))
	read.Version = "8" // it is this one that counts
	if _, err := c.Update(t.Context(), claim(read, "node-a_x", now, 2*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), claim(Lease{Name: "nodestead-restart-0"}, newSlot, now, time.Minute)); err != nil {
		t.Fatal(err)
	}
	const path = "/apis/coordination.k8s.io/v1/namespaces/nodestead/leases"
	got := s.requests()
	if diff := cmp.Diff([]seen{
		{Method: "GET", Path: path + "/nodestead-restart-0", Accept: "application/json", Token: "first"},
		{Method: "PUT", Path: path + "/nodestead-restart-0", ContentType: "application/json", Accept: "application/json", Token: "first"},
		{Method: "POST", Path: path, ContentType: "application/json", Accept: "application/json", Token: "first"},
	}, got, cmp.AllowUnexported(seen{}), cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".body" }, cmp.Ignore())); diff != "" {
		t.Errorf("the requests (-want +got):\n%s", diff)
	}
	var put, post coordinationv1.Lease
	strictly(t, got[1].body, &put)
	strictly(t, got[2].body, &post)
	wantPut := coordinationv1.Lease{
		TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{
			Name: "nodestead-restart-0", Namespace: "nodestead", ResourceVersion: "8", UID: "u", Generation: 12345678901234567,
			Labels: map[string]string{"team": "a"}, Annotations: map[string]string{"n": "1"},
		},
		Spec: leaseSpec("node-a_x", 120, 4, acquired, now),
	}
	wantPost := coordinationv1.Lease{
		TypeMeta:   wantPut.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{Name: "nodestead-restart-0", Labels: map[string]string{"app.kubernetes.io/name": "nodestead"}},
		Spec:       leaseSpec(newSlot, 60, 1, now, now),
	}
	if diff := cmp.Diff(wantPut, put); diff != "" {
		t.Errorf("the update (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantPost, post); diff != "" {
		t.Errorf("the creation (-want +got):\n%s", diff)
	}
}

func leaseSpec(holder string, seconds, transitions int32, acquired, renewed time.Time) coordinationv1.LeaseSpec {
	at, until := metav1.NewMicroTime(acquired), metav1.NewMicroTime(renewed)
	return coordinationv1.LeaseSpec{
		HolderIdentity: &holder, LeaseDurationSeconds: &seconds, LeaseTransitions: &transitions, AcquireTime: &at, RenewTime: &until,
	}
}

// TestUnclaim: a slot that is given back has an empty holder.
func TestUnclaim(t *testing.T) {
	free := strings.Replace(leaseJSON, "node-a_x", "", 1)
	s := newServer(t, says(http.StatusOK, free))
	l, err := decodeLease([]byte(leaseJSON))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, s).Update(t.Context(), unclaim(l, time.Now())); err != nil {
		t.Fatal(err)
	}
	var put coordinationv1.Lease
	strictly(t, s.requests()[0].body, &put)
	if put.Spec.HolderIdentity == nil || *put.Spec.HolderIdentity != "" || put.ResourceVersion != "7" {
		t.Errorf("the holder is %v in version %s", put.Spec.HolderIdentity, put.ResourceVersion)
	}
}

func TestUpdateNeedsAVersion(t *testing.T) {
	s := newServer(t, says(http.StatusOK, leaseJSON))
	if _, err := dial(t, s).Update(t.Context(), Lease{Name: "nodestead-restart-0"}); err == nil {
		t.Error("an update without a version is taken")
	}
	if got := s.requests(); len(got) > 0 {
		t.Errorf("it was sent: %v", got)
	}
}

// TestRefusals: only the API server's own word counts as a conflict or as an
// object that is not there. Whatever the answer, there is one request.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name       string
		code       int
		body       string
		retryAfter string
		is         error // ErrConflict or ErrNotFound; nil: any other
		after      time.Duration
		text       string
	}{
		{"conflict", 409, status(409, "Conflict"), "", ErrConflict, 0, "it says Conflict"},
		{"exists", 409, status(409, "AlreadyExists"), "", ErrConflict, 0, ""},
		{"conflict of a proxy", 409, "<html>conflict</html>", "", nil, 0, "http status 409"},
		{"conflict of another kind", 409, status(409, "Expired"), "", nil, 0, ""},
		{"not found", 404, status(404, "NotFound"), "", ErrNotFound, 0, ""},
		{"no such group", 404, "404 page not found", "", nil, 0, "http status 404"},
		{"conflict in words only", 500, status(409, "Conflict"), "", nil, 0, ""},
		{"not found in words only", 200, status(404, "NotFound"), "", nil, 0, "want a Lease"},
		{"too many", 429, status(429, "TooManyRequests"), "7", nil, 7 * time.Second, ""},
		{"too many, of a proxy", 429, "slow down", "1", nil, time.Second, "http status 429"},
		{"for ages", 429, "", "99999999999999", nil, longestAfter, ""},
		{"an overflow", 429, "", "18446744074", nil, longestAfter, ""},
		{"more than a number", 429, "", "99999999999999999999999", nil, 0, ""},
		{"negative", 429, "", "-4", nil, 0, ""},
		{"a date", 503, "", "Wed, 21 Oct 2026 07:28:00 GMT", nil, 0, "http status 503"},
		{"no leader", 503, status(503, "ServiceUnavailable"), "2", nil, 2 * time.Second, ""},
		{"timeout of etcd", 504, status(504, "Timeout"), "", nil, 0, "it says Timeout"},
		{"unauthorized", 401, status(401, "Unauthorized"), "", nil, 0, ""},
		{"forbidden", 403, status(403, "Forbidden"), "", nil, 0, "it says Forbidden"},
		{"moved", 307, "", "", nil, 0, "http status 307"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				if tc.retryAfter != "" {
					w.Header().Set("Retry-After", tc.retryAfter)
				}
				says(tc.code, tc.body)(w, r)
			})
			l, err := decodeLease([]byte(leaseJSON))
			if err != nil {
				t.Fatal(err)
			}
			_, err = dial(t, s).Update(t.Context(), l)
			if err == nil {
				t.Fatal("no error")
			}
			if errors.Is(err, ErrConflict) != errors.Is(tc.is, ErrConflict) || errors.Is(err, ErrNotFound) != errors.Is(tc.is, ErrNotFound) {
				t.Errorf("the error is %v, want %v", err, tc.is)
			}
			if got := after(err); got != tc.after {
				t.Errorf("to be left alone for %v, want %v", got, tc.after)
			}
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("the error %q lacks %q", err, tc.text)
			}
			if n := len(s.requests()); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestMalformed: what is no certain answer is an error, never a free slot.
func TestMalformed(t *testing.T) {
	replace := func(old, with string) string { return strings.Replace(leaseJSON, old, with, 1) }
	tests := map[string]string{
		"empty":           "",
		"a page":          "<html>log in here</html>",
		"null":            "null",
		"a list":          "[]",
		"nothing in it":   "{}",
		"cut off":         leaseJSON[:len(leaseJSON)-10],
		"more behind":     leaseJSON + "{}",
		"another kind":    replace(`"Lease"`, `"Secret"`),
		"another group":   replace("coordination.k8s.io/v1", "v1"),
		"another name":    replace("nodestead-restart-0", "nodestead-restart-1"),
		"no version":      replace(`"resourceVersion":"7",`, ""),
		"version no text": replace(`"resourceVersion":"7"`, `"resourceVersion":7`),
		"holder no text":  replace(`"node-a_x"`, "5"),
		"no duration":     replace("300", "3e12"),
		"too long":        replace(`"n":"1"`, `"n":"`+strings.Repeat("x", maxAnswer)+`"`),
	}
	for name, body := range tests {
		t.Run(name, func(t *testing.T) {
			c := dial(t, newServer(t, says(http.StatusOK, body)))
			if l, err := c.Get(t.Context(), "nodestead-restart-0"); err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrConflict) {
				t.Errorf("the lease %v, error %v", l, err)
			}
		})
	}
	t.Run("another holder", func(t *testing.T) {
		c := dial(t, newServer(t, says(http.StatusOK, leaseJSON)))
		l, err := decodeLease([]byte(leaseJSON))
		if err != nil {
			t.Fatal(err)
		}
		l.Holder = "node-b_y"
		if _, err := c.Update(t.Context(), l); err == nil {
			t.Error("an update of which something else came is taken for done")
		}
	})
	t.Run("an empty spec is a free slot", func(t *testing.T) {
		body := `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"nodestead-restart-0","resourceVersion":"1"},"spec":{"holderIdentity":null,"renewTime":null}}`
		l, err := dial(t, newServer(t, says(http.StatusOK, body))).Get(t.Context(), "nodestead-restart-0")
		if err != nil || l.Holder != "" || l.TTL != 0 {
			t.Errorf("the lease %v, error %v", l, err)
		}
	})
}

// TestTimeout: a server that hangs is not waited for, with headers or without.
func TestTimeout(t *testing.T) {
	for _, headers := range []bool{false, true} {
		end := make(chan struct{})
		s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
			if headers {
				w.WriteHeader(http.StatusOK)
				w.(http.Flusher).Flush()
			}
			<-end
		})
		t.Cleanup(func() { close(end) })
		c := dial(t, s)
		c.timeout = 100 * time.Millisecond
		_, err := c.Get(t.Context(), "nodestead-restart-0")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error is %v", err)
		}
	}
}

// TestRotation: token and CA are those that are in the files now.
func TestRotation(t *testing.T) {
	s := newServer(t, says(http.StatusOK, leaseJSON))
	c := dial(t, s)
	get := func() error {
		_, err := c.Get(t.Context(), "nodestead-restart-0")
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	write(t, c.dir, "token", "second")
	if err := get(); err != nil {
		t.Fatal(err)
	}
	got := s.requests()
	if got[0].Token != "first" || got[1].Token != "second" {
		t.Errorf("the tokens are %s and %s", got[0].Token, got[1].Token)
	}
	ca, err := os.ReadFile(filepath.Join(c.dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, c.dir, "ca.crt", otherCA(t))
	if err := get(); err == nil {
		t.Error("a server is trusted whose CA is no longer in the file")
	}
	write(t, c.dir, "ca.crt", "rubbish")
	if err := get(); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("without a CA the error is %v", err)
	}
	write(t, c.dir, "ca.crt", string(ca))
	if err := get(); err != nil {
		t.Errorf("after the CA is back: %v", err)
	}
	if err := os.Remove(filepath.Join(c.dir, "token")); err != nil {
		t.Fatal(err)
	}
	if err := get(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a token the error is %v", err)
	}
}

func TestControlPlane(t *testing.T) {
	tests := map[string]struct {
		body string
		want bool
		bad  bool
	}{
		"worker":         {`{"metadata":{"name":"node-a","labels":{"kubernetes.io/os":"linux"}}}`, false, false},
		"control plane":  {`{"metadata":{"name":"node-a","labels":{"node-role.kubernetes.io/control-plane":""}}}`, true, false},
		"master":         {`{"metadata":{"name":"node-a","labels":{"node-role.kubernetes.io/master":"true"}}}`, true, false},
		"another node":   {`{"metadata":{"name":"node-b"}}`, false, true},
		"rubbish":        {`<html>`, false, true},
		"nothing at all": {`{}`, false, true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, says(http.StatusOK, tc.body))
			got, err := dial(t, s).ControlPlane(t.Context(), "node-a")
			if got != tc.want || (err != nil) != tc.bad {
				t.Errorf("got %v, %v", got, err)
			}
			r := s.requests()[0]
			if r.Path != "/api/v1/nodes/node-a" || r.Accept != "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1" {
				t.Errorf("the request is %+v", r)
			}
		})
	}
}

func TestInCluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := InCluster(); !errors.Is(err, ErrNotInCluster) {
		t.Errorf("without an environment: %v", err)
	}
	if _, err := newClient("https://[fd00::1]:443", t.TempDir()); !errors.Is(err, ErrNotInCluster) {
		t.Errorf("without a service account: %v", err)
	}
}

func TestEventRequests(t *testing.T) {
	first := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pod := Event{
		Name: "runner.1", About: About{"ci", "runner", "uid-1"}, Reason: "OrphanedAnswer", Message: "lost", Warning: true,
		Node: "node-a", First: first, Last: first.Add(time.Minute), Count: 3,
	}
	node := pod
	node.About, node.Warning, node.Count = About{Name: "node-a", UID: "node-a"}, false, 1<<40
	s := newServer(t, says(http.StatusCreated, "{}"))
	c := dial(t, s)
	for _, err := range []error{c.CreateEvent(t.Context(), pod), c.CreateEvent(t.Context(), node), c.RaiseEvent(t.Context(), pod)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := s.requests()
	var created, aboutNode corev1.Event
	strictly(t, got[0].body, &created)
	strictly(t, got[1].body, &aboutNode)
	want := corev1.Event{
		TypeMeta:       metav1.TypeMeta{Kind: "Event", APIVersion: "v1"},
		ObjectMeta:     metav1.ObjectMeta{Name: "runner.1", Namespace: "ci"},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "ci", Name: "runner", UID: "uid-1"},
		Reason:         "OrphanedAnswer", Message: "lost", Type: corev1.EventTypeWarning,
		Source:         corev1.EventSource{Component: "nodestead", Host: "node-a"},
		FirstTimestamp: metav1.NewTime(first), LastTimestamp: metav1.NewTime(first.Add(time.Minute)), Count: 3,
		ReportingController: "nodestead", ReportingInstance: "node-a",
	}
	if diff := cmp.Diff(want, created); diff != "" {
		t.Errorf("about the pod (-want +got):\n%s", diff)
	}
	want.Namespace, want.Type, want.Count = "default", corev1.EventTypeNormal, 1<<31-1
	want.InvolvedObject = corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "node-a", UID: "node-a"}
	if diff := cmp.Diff(want, aboutNode); diff != "" {
		t.Errorf("about the node (-want +got):\n%s", diff)
	}
	if r := got[2]; r.Method != "PATCH" || r.Path != "/api/v1/namespaces/ci/events/runner.1" || r.ContentType != "application/merge-patch+json" ||
		string(r.body) != `{"count":3,"lastTimestamp":"2026-01-02T03:05:05Z","message":"lost"}` {
		t.Errorf("the patch is %s %s %s %s", r.Method, r.Path, r.ContentType, r.body)
	}
	if r := got[1]; r.Path != "/api/v1/namespaces/default/events" {
		t.Errorf("the event about the node went to %s", r.Path)
	}
}
