package lab

import (
	"context"
	"net"
	"net/http"
	"time"
)

// DialContext connects to an IP address from this namespace. It fits
// http.Transport.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// HTTPClient is a client that connects from this namespace and keeps no
// connection.
func (n *Namespace) HTTPClient() *http.Client {
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true},
	}
}
