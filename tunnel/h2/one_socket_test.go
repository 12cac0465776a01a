package h2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"culvert/tunnel/h2"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// grpcFrame is the length-prefixed message of gRPC over HTTP/2.
func grpcFrame(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

// TestOneSocket carries a CONNECT tunnel, a gRPC call and a PUSH_PROMISE at the same time over one TCP
// socket: the tunnel is in the middle of its bytes while the other two happen.
func TestOneSocket(t *testing.T) {
	gs := grpc.NewServer()
	healthpb.RegisterHealthServer(gs, health.NewServer())
	web := h2.HTTPHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			gs.ServeHTTP(w, r)
			return
		}
		if r.URL.Path == "/page" {
			if err := w.(http.Pusher).Push("/pushed", nil); err != nil {
				t.Errorf("Push = %v", err)
			}
		}
		io.WriteString(w, "content of "+r.URL.Path)
	}))
	pushed := make(chan string, 1)
	nc1, nc2 := loopback(t) // the only socket
	client, _, _ := connPair(t, nc1, nc2,
		h2.Config{EnablePush: true, OnPush: func(_ *h2.Stream, promise *h2.Header, p *h2.Stream) {
			go func() {
				defer p.Close()
				b, err := io.ReadAll(p)
				if err != nil {
					t.Error(err)
				}
				pushed <- promise.Path + ": " + string(b)
			}()
		}},
		h2.Config{Handler: func(s *h2.Stream) {
			if s.Request().Method != "CONNECT" {
				web(s)
				return
			}
			defer s.Close()
			if s.Respond(&h2.Header{Status: 200}, false) == nil {
				io.Copy(s, s)
				s.CloseWrite()
			}
		}})

	ctx := context.Background()
	tun, err := client.Open(ctx, &h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	if _, err := tun.Response(ctx); err != nil {
		t.Fatal(err)
	}
	echo := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.WriteString(tun, want); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(tun, got); err != nil || string(got) != want {
			t.Fatalf("tunnel echoed %q, %v; want %q", got, err, want)
		}
	}
	echo("before")

	frame := grpcFrame(t, &healthpb.HealthCheckRequest{})
	req, _ := http.NewRequest(http.MethodPost, "http://one/grpc.health.v1.Health/Check", bytes.NewReader(frame))
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	call, err := client.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	echo("while the call's answer waits")

	get, _ := http.NewRequest(http.MethodGet, "http://one/page", nil)
	page, err := client.RoundTrip(get)
	if err != nil {
		t.Fatal(err)
	}
	echo("while the page waits")

	if b, err := io.ReadAll(page.Body); err != nil || string(b) != "content of /page" {
		t.Errorf("page: %q, %v", b, err)
	}
	page.Body.Close()
	if got := <-pushed; got != "/pushed: content of /pushed" {
		t.Errorf("pushed %q", got)
	}
	b, err := io.ReadAll(call.Body)
	call.Body.Close()
	if status := call.Trailer.Get("Grpc-Status"); err != nil || status != "0" || len(b) < 5 {
		t.Fatalf("call: %d bytes, status %q, %v", len(b), status, err)
	}
	var answer healthpb.HealthCheckResponse
	if err := proto.Unmarshal(b[5:], &answer); err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("call answered %v, %v", answer.Status, err)
	}
	echo("after")
	if same := client.NetConn().(*net.TCPConn); same != nc1 {
		t.Error("not the one socket")
	}
}
