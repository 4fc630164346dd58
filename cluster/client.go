package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// accountDir is where the kubelet mounts the service account.
	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	// requestTime is how long one request may take.
	requestTime = 10 * time.Second
	// maxAnswer is more than an Event, a Lease or the metadata of a Node takes.
	maxAnswer = 1 << 20
)

// Client talks to the API server as the pod's service account. It never tries
// again by itself, because its callers must know what became of each request.
type Client struct {
	base      string // https://host:port
	dir       string // of the service account
	namespace string // of the pod
	timeout   time.Duration
	dial      func(ctx context.Context, network, address string) (net.Conn, error) // nil: the usual one

	mu   sync.Mutex
	ca   []byte // that http trusts
	http *http.Client
}

// InCluster gives the client of the pod that this process runs in, or
// ErrNotInCluster.
func InCluster() (*Client, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, fmt.Errorf("KUBERNETES_SERVICE_HOST or KUBERNETES_SERVICE_PORT is not set: %w", ErrNotInCluster)
	}
	return newClient("https://"+net.JoinHostPort(host, port), accountDir)
}

func newClient(base, dir string) (*Client, error) {
	namespace, err := os.ReadFile(filepath.Join(dir, "namespace"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no service account is mounted at %s: %w", dir, ErrNotInCluster)
	} else if err != nil {
		return nil, fmt.Errorf("read the pod's namespace: %w", err)
	}
	return &Client{base: base, dir: dir, namespace: strings.TrimSpace(string(namespace)), timeout: requestTime}, nil
}

// Close closes the connections that are kept.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
}

// client gives the HTTP client for the CA that is in the service account now:
// the kubelet changes the file when the cluster's CA is changed.
func (c *Client) client() (*http.Client, error) {
	pem, err := os.ReadFile(filepath.Join(c.dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's CA: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.http != nil && bytes.Equal(pem, c.ca) {
		return c.http, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("read the cluster's CA: no certificate in it")
	}
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
	c.ca = pem
	// HTTP/1.1, so that a connection that hangs is closed with the request that
	// noticed it. No proxy: the API server is in the cluster.
	c.http = &http.Client{
		Timeout: c.timeout,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DialContext:     c.dial,
			MaxIdleConns:    2, IdleConnTimeout: 5 * time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c.http, nil
}

// call is one request.
type call struct {
	method, path string
	contentType  string // of body; empty: application/json
	accept       string // empty: application/json
	body         any    // nil: none
}

// do sends one request and gives the answer's body.
func (c *Client) do(ctx context.Context, r call) ([]byte, error) {
	answer, err := c.send(ctx, r)
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		err = urlErr.Err // its text repeats what follows
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", strings.ToLower(r.method), r.path, err)
	}
	return answer, nil
}

func (c *Client) send(ctx context.Context, r call) ([]byte, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	// The token lives for an hour or less; the kubelet replaces it in time.
	token, err := os.ReadFile(filepath.Join(c.dir, "token"))
	if err != nil {
		return nil, fmt.Errorf("read the service account's token: %w", err)
	}
	var body io.Reader
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, r.method, c.base+r.path, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	request.Header.Set("User-Agent", "nodestead")
	request.Header.Set("Accept", orJSON(r.accept))
	if body != nil {
		request.Header.Set("Content-Type", orJSON(r.contentType))
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	// A longer one is cut off, and cannot be decoded then.
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer: %w", err)
	case response.StatusCode < 200 || response.StatusCode > 299:
		return nil, refusal(response, answer)
	}
	return answer, nil
}

func orJSON(contentType string) string {
	if contentType == "" {
		return "application/json"
	}
	return contentType
}

// statusError is a refusal.
type statusError struct {
	code    int
	message string
}

func (e *statusError) Error() string {
	if e.message == "" {
		return "http status " + strconv.Itoa(e.code)
	}
	return fmt.Sprintf("http status %d: %s", e.code, e.message)
}

// refusal makes an error of an answer that is no success. Only the API server's
// own word, a Status object, says that there was a conflict, or that an object
// does not exist: a proxy on the way knows neither.
func refusal(response *http.Response, answer []byte) error {
	var status struct{ Kind, Reason, Message string }
	if err := json.Unmarshal(answer, &status); err != nil || status.Kind != "Status" {
		status.Reason, status.Message = "", ""
	}
	var err error = &statusError{code: response.StatusCode, message: status.Message}
	switch {
	case response.StatusCode == http.StatusConflict && (status.Reason == "Conflict" || status.Reason == "AlreadyExists"):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case response.StatusCode == http.StatusNotFound && status.Reason == "NotFound":
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if seconds, atoiErr := strconv.Atoi(response.Header.Get("Retry-After")); atoiErr == nil && seconds > 0 {
		// A limit first, because a big number would overflow.
		err = &busyError{after: time.Duration(min(seconds, int(longestAfter/time.Second))) * time.Second, err: err}
	}
	return err
}

// ControlPlane tells whether a node has a label of the control plane.
func (c *Client) ControlPlane(ctx context.Context, node string) (bool, error) {
	answer, err := c.do(ctx, call{
		method: http.MethodGet, path: "/api/v1/nodes/" + url.PathEscape(node),
		// Without this the answer has the names of all images on the node.
		accept: "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
	})
	if err != nil {
		return false, err
	}
	var object struct {
		Metadata struct {
			Name   string
			Labels map[string]string
		}
	}
	if err := json.Unmarshal(answer, &object); err != nil {
		return false, fmt.Errorf("read node %s: %w", node, err)
	}
	if object.Metadata.Name != node {
		return false, fmt.Errorf("read node %s: the answer is about %q", node, object.Metadata.Name)
	}
	_, controlPlane := object.Metadata.Labels["node-role.kubernetes.io/control-plane"]
	_, master := object.Metadata.Labels["node-role.kubernetes.io/master"] // before Kubernetes 1.24
	return controlPlane || master, nil
}
