package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"culvert/tunnel"
)

// pingProxy connects to a hop that is a proxy of others, with TLS where flows would have it, and prints what it found.
func pingProxy(ctx context.Context, w io.Writer, name, address string, hop *tunnel.HopConfig) error {
	start := time.Now()
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return dialError(address, "is the proxy running, and is that its port?", err)
	}
	defer nc.Close()
	kind, connected := "tun: "+hop.Tun, time.Since(start)
	if hop.Proxy != "" {
		kind = "proxy: " + hop.Proxy
	}
	transport, shake := "TCP, without TLS", ""
	if hop.Proxy == "https" || hop.Tun != "" && !hop.TLS.None {
		start = time.Now()
		cs, err := proxyHandshake(ctx, nc, address, hop)
		if err != nil {
			return fmt.Errorf("TLS with %s: %w", nc.RemoteAddr(), err)
		}
		transport = fmt.Sprintf("%s (ALPN %s), %s", tls.VersionName(cs.Version), cmp.Or(cs.NegotiatedProtocol, "none"), tls.CipherSuiteName(cs.CipherSuite))
		shake = fmt.Sprintf(", TLS handshake %s", rounded(time.Since(start)))
	}
	_, err = fmt.Fprintf(w, `%s takes connections
  address    %s
  it is      a proxy of others (%s): what it and who is behind it say to a flow, only a flow finds out
  transport  %s
  connect    %s%s
`, name, nc.RemoteAddr(), kind, transport, rounded(connected), shake)
	return err
}

// proxyHandshake does TLS with a proxy, as browsers have it.
func proxyHandshake(ctx context.Context, nc net.Conn, address string, hop *tunnel.HopConfig) (*tls.ConnectionState, error) {
	host := cmp.Or(hop.Authority, address)
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	conf := &tls.Config{ServerName: cmp.Or(hop.TLS.ServerName, host), MinVersion: tls.VersionTLS12}
	if hop.Tun != "" {
		conf.NextProtos = []string{"h2", "http/1.1"}
	}
	if hop.TLS.Roots != "" {
		text, err := os.ReadFile(hop.TLS.Roots)
		if err != nil {
			return nil, err
		}
		if conf.RootCAs = x509.NewCertPool(); !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: there is no certificate in it", hop.TLS.Roots)
		}
	}
	tc := tls.Client(nc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, proxyHint(err, conf.ServerName)
	}
	cs := tc.ConnectionState()
	return &cs, nil
}

// proxyHint adds what mends an error of the TLS handshake with a proxy.
func proxyHint(err error, name string) error {
	var host x509.HostnameError
	var authority x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &host):
		return fmt.Errorf("its certificate is not for %s; if it is the right one, write the name that it is for in tls.serverName of the hop (%w)", name, err)
	case errors.As(err, &authority):
		return fmt.Errorf("its certificate was signed by none of the CAs that are believed; name the right one in tls.roots of the hop (%w)", err)
	case errors.As(err, &record):
		return fmt.Errorf("the proxy does not speak TLS on this port; use another one, or tls: {none: true} (%w)", err)
	}
	return err
}
