package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
)

// secure puts TLS and authentication before the server, as the web config says;
// without one it does nothing. The file is read again at each connection and
// request, so that a certificate or a password is renewed without a restart. The
// error is about the file.
//
// web.Serve makes the server's handler and TLS from the file and serves at once;
// it lets nothing stand before that handler. So it is given a listener that has
// ended: what it made is there when it returns, before anything is served.
func secure(server *http.Server, config WebConfig, at net.Addr, log *slog.Logger) error {
	if config == "" {
		return nil
	}
	open := server.Handler
	file := string(config)
	err := web.Serve(endedListener{at}, server, &web.FlagConfig{WebConfigFile: &file}, log)
	if !errors.Is(err, errListenerEnded) {
		return Problems{{Path: "http.web_config", Source: file, Text: oneLine(err.Error())}}
	}
	server.Handler = exempt(open, server.Handler)
	return nil
}

// exempt answers what a kubelet asks without authentication, because a probe has
// no safe place for a password; all else is guarded. See docs/decisions/0011.
func exempt(open, guarded http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", open)
	mux.Handle("GET /readyz", open)
	mux.Handle("/", guarded)
	return mux
}

// serve serves on the listener, with TLS where secure has set it.
func serve(server *http.Server, listener net.Listener) error {
	if !hasTLS(server) {
		return server.Serve(listener)
	}
	return server.ServeTLS(listener, "", "")
}

// hasTLS tells whether secure has set TLS. That there is a configuration says
// nothing: net/http makes one for any server.
func hasTLS(server *http.Server) bool {
	return server.TLSConfig != nil && server.TLSConfig.GetCertificate != nil
}

// certificateEnd is when the certificate of HTTP itself ends; zero without TLS,
// and when it cannot be read any more.
func certificateEnd(server *http.Server) time.Time {
	if !hasTLS(server) {
		return time.Time{}
	}
	certificate, err := server.TLSConfig.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil || certificate.Leaf == nil {
		return time.Time{}
	}
	return certificate.Leaf.NotAfter
}

var errListenerEnded = errors.New("the listener has ended")

// endedListener is a listener that has ended.
type endedListener struct{ at net.Addr }

func (endedListener) Accept() (net.Conn, error) { return nil, errListenerEnded }
func (endedListener) Close() error              { return nil }
func (l endedListener) Addr() net.Addr          { return l.at }

// serverLog is where net/http logs. A client that breaks off the handshake is no
// incident: port scanners do it, and each TCP probe of a kubelet.
func serverLog(log *slog.Logger) io.Writer {
	return levelWriter(func(line []byte) {
		level := slog.LevelWarn
		if bytes.HasPrefix(line, []byte("http: TLS handshake error")) {
			level = slog.LevelDebug
		}
		log.Log(context.Background(), level, "http server", "err", string(bytes.TrimSpace(line)))
	})
}

type levelWriter func(line []byte)

// Write implements io.Writer.
func (w levelWriter) Write(line []byte) (int, error) {
	w(line)
	return len(line), nil
}
