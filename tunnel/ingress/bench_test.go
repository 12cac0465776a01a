package ingress_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/ingress"
	"culvert/tunnel/tunneltest"
)

// What a request costs through the gateway, decided and recorded, and through a bare httputil.ReverseProxy, over loopback.
func BenchmarkRequests(b *testing.B) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello, world") }))
	defer app.Close()
	to, err := url.Parse(app.URL)
	if err != nil {
		b.Fatal(err)
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.MaxIdleConnsPerHost, tr.MaxIdleConns = 1000, 1000
	bare := httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(to); p.SetXForwarded() }, Transport: tr, FlushInterval: -1,
	})
	bare.Config.Protocols = new(http.Protocols)
	bare.Config.Protocols.SetHTTP1(true)
	bare.Config.Protocols.SetUnencryptedHTTP2(true)
	bare.Start()
	defer bare.Close()

	id := tunneltest.NewCA(b).Issue(b, "cluster.local", "default", "edge")
	cfg := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "edge", Kind: tunnel.KindIngress, Address: "127.0.0.1:0"}},
		Routes:    []tunnel.RouteConfig{{From: "any", To: to.Host}},
	}
	g, err := tunnel.New(cfg, tunnel.Env{
		Self: id.Self, Log: slog.New(slog.NewJSONHandler(io.Discard, nil)),
		Servers: map[string]func(*tunnel.Gateway, *tunnel.ListenerConfig) (tunnel.Server, error){tunnel.KindIngress: ingress.New(ingress.Env{H2: h2.Config{}})},
		Dial: func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr.String())
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := g.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	for version, protocols := range map[string]func(*http.Protocols){"http1": http1, "http2": http2} {
		for name, at := range map[string]string{"bare": bare.Listener.Addr().String(), "ingress": g.Addr("edge").String()} {
			b.Run(version+"/"+name, func(b *testing.B) {
				client := &http.Transport{MaxIdleConnsPerHost: 100, Protocols: new(http.Protocols)}
				protocols(client.Protocols)
				defer client.CloseIdleConnections()
				b.ReportAllocs()
				b.SetParallelism(16)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						r, err := http.NewRequest("GET", "http://"+at+"/a/b", nil)
						if err != nil {
							b.Error(err)
							return
						}
						resp, err := client.RoundTrip(r)
						if err != nil || resp.StatusCode != 200 {
							b.Error(resp, err)
							return
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
				})
			})
		}
	}
}
