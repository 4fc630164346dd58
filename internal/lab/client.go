package lab

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Resolver is a real resolver that a pod can run.
type Resolver string

const (
	// MuslStatic is getaddrinfo of musl, linked statically.
	MuslStatic Resolver = "musl-static"
	// MuslDynamic is the same with musl as a shared library.
	MuslDynamic Resolver = "musl-dynamic"
	// Glibc is getaddrinfo of glibc.
	Glibc Resolver = "glibc"
	// Go is the resolver of Go's net package, without cgo.
	Go Resolver = "go"
)

// Resolvers are all of them.
func Resolvers() []Resolver { return []Resolver{MuslStatic, MuslDynamic, Glibc, Go} }

//go:embed client/resolve.c client/resolve/main.go
var clientSources embed.FS

// Client returns the path of the program that asks this resolver, and builds it
// when the cache has none. Its usage is in client/resolve.c. The packages that
// the compiler needs are installed.
func Client(ctx context.Context, r Resolver) (string, error) {
	return client(ctx, slog.New(slog.DiscardHandler), r)
}

func client(ctx context.Context, log *slog.Logger, r Resolver) (string, error) {
	path, err := buildClient(ctx, log, r)
	if err != nil {
		return "", fmt.Errorf("build client %s: %w", r, err)
	}
	return path, nil
}

func buildClient(ctx context.Context, log *slog.Logger, r Resolver) (string, error) {
	if r == Go {
		source, err := clientSources.ReadFile("client/resolve/main.go")
		if err != nil {
			return "", err
		}
		return cached(ctx, "resolve-go", []string{string(source), runtime.Version(), runtime.GOARCH}, func(dir string) error {
			if err := os.WriteFile(filepath.Join(dir, "main.go"), source, 0o644); err != nil {
				return err
			}
			return goCommand(ctx, dir, "build", "-o", "resolve-go", "main.go")
		})
	}
	var compiler []string
	packages := []string{"gcc", "libc6-dev"}
	switch r {
	case MuslStatic:
		compiler, packages = []string{"musl-gcc", "-static"}, append(packages, "musl-tools")
	case MuslDynamic:
		compiler, packages = []string{"musl-gcc"}, append(packages, "musl-tools")
	case Glibc:
		compiler = []string{"gcc"}
	default:
		return "", errors.New("unknown resolver")
	}
	if err := Install(ctx, log, packages...); err != nil {
		return "", err
	}
	source, err := clientSources.ReadFile("client/resolve.c")
	if err != nil {
		return "", err
	}
	version, err := exec.CommandContext(ctx, compiler[0], "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", compiler[0], err)
	}
	inputs := append(compiler[:len(compiler):len(compiler)], string(version), string(source))
	name := "resolve-" + string(r)
	return cached(ctx, name, inputs, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "resolve.c"), source, 0o644); err != nil {
			return err
		}
		args := append(compiler[1:len(compiler):len(compiler)], "-O2", "-Wall", "-Werror", "-pthread", "-o", name, "resolve.c")
		cmd := exec.CommandContext(ctx, compiler[0], args...)
		cmd.Dir = dir
		return run(cmd)
	})
}

// Answer is what a resolver told a program about a name.
type Answer struct {
	Name string
	// Err is empty when the lookup succeeded; else the resolver's word:
	// "EAI_AGAIN", "EAI_NONAME" from a libc, "no_such_host", "i/o_timeout" from Go.
	Err   string
	Took  time.Duration
	Addrs []netip.Addr
}

// Client returns the path of a resolver's program, as the function of that name
// does, and remembers it.
func (l *Lab) Client(r Resolver) (string, error) {
	l.mu.Lock()
	path, ok := l.clients[r]
	l.mu.Unlock()
	if ok {
		return path, nil
	}
	path, err := client(l.ctx, l.log, r)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	l.clients[r] = path
	l.mu.Unlock()
	return path, nil
}

// Resolve has one process in the pod look up the names, all of them count
// times, one after the other, and returns an answer for each lookup in order. A
// lookup that failed is an answer, not an error.
func (p *Pod) Resolve(ctx context.Context, r Resolver, count int, names ...string) ([]Answer, error) {
	answers, err := p.resolve(ctx, r, count, names)
	if err != nil {
		return nil, fmt.Errorf("resolve by %s in pod %s: %w", r, p.Name, err)
	}
	return answers, nil
}

func (p *Pod) resolve(ctx context.Context, r Resolver, count int, names []string) ([]Answer, error) {
	path, err := p.lab.Client(r)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, clientArgs(count, names)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin"} // without RES_OPTIONS, LOCALDOMAIN, GODEBUG and the like
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := p.Start(cmd); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, errors.Join(ctx.Err(), fmt.Errorf("%w: %s", err, tail(stderr.Bytes())))
	}
	return parseAnswers(&stdout)
}

// clientArgs are the arguments of a client whose output is for parseAnswers.
func clientArgs(count int, names []string) []string {
	return append([]string{"-v", "-n", strconv.Itoa(count)}, names...)
}

// parseAnswers reads what a client prints with -v: a line for each lookup, and
// a summary that begins with "#".
func parseAnswers(r io.Reader) ([]Answer, error) {
	var answers []Answer
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			return answers, nil
		}
		a, err := parseAnswer(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("read answer %q: %w", line, err)
		}
		answers = append(answers, a)
	}
	return nil, errors.Join(errors.New("no summary"), lines.Err())
}

// parseAnswer reads the fields NAME, "ok" or an error, MILLISECONDS, ADDRESS….
func parseAnswer(fields []string) (Answer, error) {
	if len(fields) < 3 {
		return Answer{}, errors.New("too few fields")
	}
	a := Answer{Name: fields[0]}
	if fields[1] != "ok" {
		a.Err = fields[1]
	}
	ms, err := strconv.ParseFloat(fields[2], 64)
	if err != nil {
		return Answer{}, err
	}
	a.Took = time.Duration(ms * float64(time.Millisecond))
	for _, f := range fields[3:] {
		addr, err := netip.ParseAddr(f)
		if err != nil {
			return Answer{}, err
		}
		a.Addrs = append(a.Addrs, addr)
	}
	return a, nil
}
