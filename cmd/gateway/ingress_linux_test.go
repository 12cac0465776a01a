package main_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// edge is an ingress on mid, before the workload of far: clients on app are no gateways, and come in by HTTP and by plain TCP
// on one port.
type edge struct {
	*hosts
	gateways map[string]*gateway // by what they are: ingress, workload
	client   *http.Client        // on app
}

const (
	edgePort = midAddr + ":8080"
	edgeWeb  = farAddr + ":8081" // streams what it is sent, and has nothing to say besides
)

func newEdge(t *testing.T) *edge {
	t.Helper()
	e := &edge{hosts: newHosts(t), gateways: make(map[string]*gateway)}
	e.identity(t, "shop", "orders")
	e.write(t, "ingress.yaml", []byte(`
identity: {cert: server.pem, key: server.key, roots: root.pem}
listeners: [{name: edge, kind: ingress, address: ":8080", ingress: {protocols: [http, tcp]}}]
hops: {workload: {address: "`+farAddr+`:15008", identity: "spiffe://cluster.local/ns/shop/sa/orders"}}
routes:
- {listeners: [edge], hosts: [shop.example], http: {prefix: /echo}, to: "`+edgeWeb+`", via: [workload], from: any}
- {listeners: [edge], hosts: [shop.example], http: {}, to: "`+farAddr+`:80", via: [workload], from: any}
- {listeners: [edge], to: "`+far4+`", via: [workload], from: any}
`))
	e.write(t, "workload.yaml", []byte(`
identity: {cert: orders.pem, key: orders.key, roots: root.pem}
listeners: [{name: mesh, kind: hbone, address: ":15008"}]
routes: [{destinations: [local]}]
policy: {allow: ["`+strings.TrimPrefix(serverID, "spiffe://")+`"]}
`))
	ln := e.far.listen(edgeWeb)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(flushing{w}, r.Body)
	})}
	go func() { _ = srv.Serve(ln) }() // ends with Close
	t.Cleanup(func() { _ = srv.Close() })
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return e.app.dial(ctx, "tcp", edgePort) }}
	t.Cleanup(tr.CloseIdleConnections)
	e.client = &http.Client{Transport: tr, Timeout: patience}
	e.start(t, "workload")
	e.start(t, "ingress")
	return e
}

// flushing sends every write at once.
type flushing struct{ http.ResponseWriter }

func (w flushing) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	return n, errors.Join(err, http.NewResponseController(w.ResponseWriter).Flush())
}

// start starts one of the gateways, again where it was killed.
func (e *edge) start(t *testing.T, name string) {
	t.Helper()
	on := map[string]*host{"ingress": e.mid, "workload": e.far}[name]
	e.gateways[name] = e.gatewayOn(t, on, "", "-c", e.path(name+".yaml"))
}

// get fetches the page that says who asked for what.
func (e *edge) get() error {
	resp, err := e.client.Get("http://shop.example/page")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != farAddr+" asked for shop.example/page\n" {
		err = fmt.Errorf("status %d: %q", resp.StatusCode, body)
	}
	return err
}

// bothWays is a request whose body and answer go on until somebody ends them.
type bothWays struct {
	body   *io.PipeWriter
	answer io.ReadCloser
}

func (e *edge) bothWays(t *testing.T) *bothWays {
	t.Helper()
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://shop.example/echo", r)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := e.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.CloseWithError(errors.New("the test is over"))
		_ = resp.Body.Close()
	})
	return &bothWays{body: w, answer: resp.Body}
}

// TestNetnsIngress carries requests, streams of both ways and plain TCP from clients through an ingress to a workload on another
// host. Both gateways are killed in the middle: what lives ends as a break, and all goes on when the gateway is there again.
func TestNetnsIngress(t *testing.T) {
	e := newEdge(t)
	for _, dies := range []string{"", "ingress", "workload"} {
		if err := e.get(); err != nil {
			t.Fatal(err)
		}
		x := e.bothWays(t)
		if _, err := io.WriteString(x.body, "there and back"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(x.answer, make([]byte, len("there and back"))); err != nil {
			t.Fatalf("the answer while the request goes on: %v", err)
		}
		plain := e.app.opens(edgePort, farAddr).(*net.TCPConn)
		if dies == "" {
			_ = x.body.Close()
			if rest, err := io.ReadAll(x.answer); err != nil || len(rest) > 0 {
				t.Errorf("the end of the answer = %q, %v", rest, err)
			}
			ztWantEcho(t, plain, 4<<20) // and half-closed
			continue
		}
		e.gateways[dies].kill()
		if rest, err := io.ReadAll(x.answer); err == nil {
			t.Errorf("%s killed: an answer without its end has ended well, with %q", dies, rest)
		}
		if _, err := io.ReadAll(plain); dies == "workload" && err == nil {
			t.Errorf("%s killed: a flow that was cut has ended well", dies)
		}
		e.start(t, dies)
		within(t, "requests again, with a new "+dies, e.get)
		ztWantEcho(t, e.app.opens(edgePort, farAddr).(*net.TCPConn), 1<<20)
	}
	if err := errors.Join(e.gateways["ingress"].alive(), e.gateways["workload"].alive()); err != nil {
		t.Error(err)
	}
	e.gateways["ingress"].says(t, "msg=flow", "way=http/1.1", "method=GET", "path=/page", "status=200", "hop_id=spiffe://cluster.local/ns/shop/sa/orders")
}

// TestNetnsIngressWaits has clients find out in time that a workload's host is gone, without anybody's word.
func TestNetnsIngressWaits(t *testing.T) {
	e := newEdge(t)
	if err := e.get(); err != nil {
		t.Fatal(err)
	}
	e.gateways["workload"].kill()
	began := time.Now()
	resp, err := e.client.Get("http://shop.example/page")
	if err != nil {
		t.Fatalf("after %s: %v", time.Since(began), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable && resp.StatusCode != http.StatusBadGateway || resp.Header.Get("Proxy-Status") == "" {
		t.Errorf("status %d, proxy-status %q; want 502 or 503 and the reason", resp.StatusCode, resp.Header.Get("Proxy-Status"))
	}
}
