package daemon

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/nodestead/nodestead/certsync/host"
)

const (
	askTime  = 10 * time.Second // for an answer about a registry
	lookTime = 10 * time.Second // for what a daemon knows without asking anybody
	maxText  = 300              // runes of an answer that are kept
)

// madeUp is a repository that nobody has, and noDigest a digest that no content
// has, so that nothing is ever pulled.
const (
	madeUp   = "nodestead/trust-check"
	noDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
)

// registryName is what is taken for a registry. Without a dot, a port or the name
// localhost, docker takes the first part of an image's name for a user of Docker
// Hub, and would ask there.
var registryName = regexp.MustCompile(`^(localhost|[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)+|([0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}|\[[0-9A-Fa-f:.]+\])$`)

// Ask makes the daemon talk TLS to the registry (host:port), which makes it load
// the system's roots if it has not: never before the anchors are installed, and
// never when its unit is not active, because docker's socket would start it.
//
// A daemon that finds no words within 10 s, or that cannot be asked, gives
// an Unclear answer.
func Ask(ctx context.Context, h *host.Host, name Name, registry string) Answer {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	text, err := ask(ctx, h, name, registry)
	a := Answer{Registry: registry, At: time.Now()}
	switch {
	case err != nil:
		a.Verdict, a.Text = Unclear, shorten(fmt.Sprintf("%s gave no answer: %v", name, err))
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			a.Text = fmt.Sprintf("%s did not answer within %v", name, askTime)
		}
	case text == "":
		a.Verdict, a.Text = Trusted, "there is such an image"
	default:
		a.Verdict, a.Text = Judge(text), shorten(text)
	}
	return a
}

func ask(ctx context.Context, h *host.Host, name Name, registry string) (string, error) {
	if !registryName.MatchString(registry) {
		return "", fmt.Errorf("%q is no registry: give host:port", registry)
	}
	image := registry + "/" + madeUp
	if name == Docker {
		api := dialDocker(h.Socket(name.socket()))
		defer api.close()
		return api.distribution(ctx, image)
	}
	api, err := dialCRI(h.Socket(name.socket()))
	if err != nil {
		return "", err
	}
	defer api.close()
	return api.pull(ctx, image+"@"+noDigest)
}

var (
	userInfo = regexp.MustCompile(`://[^/\s"']*@`)
	query    = regexp.MustCompile(`(https?://[^\s"'?]*)\?[^\s"']*?(:?(["'\s]|$))`)
)

// shorten makes one line of a daemon's words. What may be a credential is left
// out: the user in a URL, and its query. Of a text that is too long the beginning
// and more of the end are kept, where the reason is.
func shorten(text string) string {
	text = userInfo.ReplaceAllString(text, "://")
	text = query.ReplaceAllString(text, "$1$2")
	text = strings.ReplaceAll(text, noDigest, "sha256:0")
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > maxText {
		const head = maxText / 3
		text = string(runes[:head]) + " … " + string(runes[len(runes)-(maxText-head-3):])
	}
	return text
}
