package ingress_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/tunneltest/memnet"
)

// serviceEdge leads all requests to a service with endpoints at addresses.
func serviceEdge(t *testing.T, addresses ...string) *edge {
	return newEdge(t, func(c *tunnel.Config) {
		var list []endpoint.EndpointConfig
		for _, a := range addresses {
			list = append(list, endpoint.EndpointConfig{Address: a})
		}
		c.Services = map[string]tunnel.ServiceConfig{"orders.shop.svc": {Config: endpoint.Config{Endpoints: list}}}
		c.Routes[0].To = "orders.shop.svc:80"
	})
}

// Each request goes to the endpoint that is picked for it, over connections that are kept, in HTTP/1.1 and HTTP/2.
func TestServiceSpreads(t *testing.T) {
	for _, kind := range []string{"text/plain", "application/grpc"} {
		e := serviceEdge(t, "10.0.1.1:8080", "10.0.1.2:8080")
		for _, a := range []string{"10.0.1.1:8080", "10.0.1.2:8080"} {
			e.serve(t, a, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s", a, r.Proto) })
		}
		seen := make(map[string]int)
		c := e.client(t, http2)
		for range 40 {
			resp, err := c.Post("http://shop.example/", kind, strings.NewReader("x"))
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v, %v\n%s", resp, err, e.log)
			}
			body, _ := io.ReadAll(resp.Body)
			seen[string(body)]++
		}
		if len(seen) != 2 {
			t.Errorf("answers by %v, want both endpoints", seen)
		}
		if n := e.net.Dials(mustAddr("10.0.1.1:8080")) + e.net.Dials(mustAddr("10.0.1.2:8080")); n > 10 {
			t.Errorf("%d connections for 40 requests, want 2, and some for a request that came before the last one's was kept", n)
		}
	}
}

// A request fails over to another endpoint: one that refuses, and one that takes the request and hangs up.
func TestServiceFailsOver(t *testing.T) {
	for _, hangsUp := range []bool{false, true} {
		e := serviceEdge(t, "10.0.1.1:8080", "10.0.1.2:8080")
		e.serve(t, "10.0.1.2:8080", echo)
		if hangsUp {
			l, err := e.net.Listen("10.0.1.1:8080")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go l.Serve(func(c *memnet.Conn) {
				_, _ = http.ReadRequest(bufio.NewReader(c))
				_ = c.Close()
			})
		}
		c := e.client(t, http1)
		for range 10 {
			resp, err := c.Get("http://shop.example/")
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("hangs up %t: %v, %v\n%s", hangsUp, resp, err, e.log)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
		}
		e.gw.Close()
		if s := e.gw.Stats(); s.Ended["ok"] != 10 || s.Active != 0 {
			t.Errorf("%d of 10 ended well, %d active", s.Ended["ok"], s.Active)
		}
	}
}
