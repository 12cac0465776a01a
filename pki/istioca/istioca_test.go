package istioca

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code)
	}
	for deadline := time.Now().Add(5 * time.Second); code == 0 && runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			fmt.Fprintf(os.Stderr, "goroutines left: %s\n", stacks[:runtime.Stack(stacks, true)])
			code = 1
		}
	}
	os.Exit(code)
}

// serve runs a Server as the CA does.
func serve(t *testing.T, sign Sign) *httptest.Server {
	t.Helper()
	return serveHandler(t, NewServer(sign))
}

func serveHandler(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(handler)
	srv.EnableHTTP2 = true
	srv.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1000}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func clientOf(t *testing.T, srv *httptest.Server, token string) *Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	c, err := NewClient(ClientConfig{Address: srv.Listener.Addr().String(), TLS: &tls.Config{RootCAs: roots, ServerName: "example.com"},
		Token: func(context.Context) (string, error) { return token, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestCall(t *testing.T) {
	var got Call
	srv := serve(t, func(_ context.Context, call Call) ([]string, error) {
		got = call
		switch call.CSR {
		case "mine":
			return nil, &Error{Code: PermissionDenied, Detail: "not yours", Err: errors.New("secret cause")}
		case "broken":
			return nil, errors.New("secret failure")
		case "long":
			return []string{strings.Repeat("x", MaxMessageBytes)}, nil
		case "many":
			return slices.Repeat([]string{"cert"}, maxCerts+1), nil
		}
		return []string{"leaf", "intermediate", "root"}, nil
	})
	c := clientOf(t, srv, "abc")
	chain, err := c.CreateCertificate(t.Context(), "csr", 90*time.Minute)
	if err != nil || !slices.Equal(chain, []string{"leaf", "intermediate", "root"}) {
		t.Fatalf("CreateCertificate = %q, %v", chain, err)
	}
	if got.CSR != "csr" || got.TTL != 90*time.Minute || got.Token != "abc" || got.Peer != nil || !strings.HasPrefix(got.Addr, "127.0.0.1:") {
		t.Errorf("the call is %+v", got)
	}
	for csr, want := range map[string]struct {
		code Code
		text string
	}{
		"mine": {PermissionDenied, "not yours"}, "broken": {Internal, "the CA failed; its log has the reason"}, "long": {ResourceExhausted, "larger"},
		"many": {Internal, "more than"}, strings.Repeat("y", MaxMessageBytes): {ResourceExhausted, "larger"},
	} {
		_, err := c.CreateCertificate(t.Context(), csr, 0)
		told, ok := errors.AsType[*Error](err)
		if !ok || told.Code != want.code || !strings.Contains(told.Detail, want.text) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.10q: %v, want %d and %q", csr, err, want.code, want.text)
		}
	}
	if _, err := clientOf(t, srv, strings.Repeat("t", maxTokenBytes+1)).CreateCertificate(t.Context(), "csr", 0); !isCode(err, Unauthenticated) {
		t.Errorf("a long token: %v", err)
	}
}

func isCode(err error, code Code) bool {
	told, ok := errors.AsType[*Error](err)
	return ok && told.Code == code
}

// A CA that TLS refuses is named with the reason, and no token is sent to it.
func TestRefusedCA(t *testing.T) {
	srv := serve(t, func(context.Context, Call) ([]string, error) { t.Error("a call has come"); return nil, nil })
	why := errors.New("not the one")
	c, err := NewClient(ClientConfig{Address: srv.Listener.Addr().String(),
		TLS: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error { return why }}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.CreateCertificate(t.Context(), "csr", 0); !errors.Is(err, why) || !isCode(err, Unavailable) {
		t.Errorf("CreateCertificate = %v", err)
	}
}

// More calls than are served at once are refused at once.
func TestCallsAreBounded(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{}, maxCalls)
	srv := serve(t, func(context.Context, Call) ([]string, error) {
		begun <- struct{}{}
		<-release
		return []string{"leaf"}, nil
	})
	c := clientOf(t, srv, "")
	var wg sync.WaitGroup
	for range maxCalls {
		wg.Go(func() {
			if _, err := c.CreateCertificate(t.Context(), "csr", 0); err != nil {
				t.Error(err)
			}
		})
	}
	for range maxCalls {
		<-begun
	}
	if _, err := c.CreateCertificate(t.Context(), "csr", 0); !isCode(err, ResourceExhausted) || !strings.Contains(err.Error(), "at once") {
		t.Errorf("one more: %v", err)
	}
	close(release)
	wg.Wait()
	if _, err := c.CreateCertificate(t.Context(), "csr", 0); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A message that never ends is given up.
func TestMessageThatNeverEnds(t *testing.T) {
	s := NewServer(func(context.Context, Call) ([]string, error) { return []string{"leaf"}, nil })
	s.patience = 50 * time.Millisecond
	srv := serveHandler(t, s)
	r, w := io.Pipe()
	defer w.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+fullMethod, r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc")
	go func() { _, _ = w.Write([]byte{0, 0, 0}) }() // ends when the server gives up, or has read it
	resp, err := srv.Client().Do(req)
	if err == nil {
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		if got := resp.Trailer.Get("Grpc-Status") + resp.Header.Get("Grpc-Status"); err == nil && (got == "" || got == "0") {
			t.Errorf("half a message: grpc-status %q", got)
		}
	}
}

// Requests that are no calls are refused, and the server lives on.
func TestOddRequests(t *testing.T) {
	srv := serve(t, func(context.Context, Call) ([]string, error) { return []string{"leaf"}, nil })
	good := (&request{csr: "csr"}).marshal()
	frame := func(flag byte, n int64, message []byte) []byte {
		return append([]byte{flag, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, message...)
	}
	for _, tc := range []struct {
		name, path, method string
		auth               []string
		body               []byte
		status             string // grpc-status, "" for none
	}{
		{"good", fullMethod, "POST", nil, frame(0, int64(len(good)), good), "0"},
		{"another method", "/" + serviceName + "/Other", "POST", nil, frame(0, int64(len(good)), good), "12"},
		{"another service", "/a.B/" + methodName, "POST", nil, frame(0, int64(len(good)), good), "12"},
		{"GET", fullMethod, "GET", nil, nil, ""},
		{"nothing", fullMethod, "POST", nil, nil, "13"},
		{"a message that ends early", fullMethod, "POST", nil, frame(0, 100, good), "13"},
		{"a message of 4 GiB", fullMethod, "POST", nil, frame(0, math.MaxUint32, nil), "8"},
		{"a compressed message", fullMethod, "POST", nil, frame(1, int64(len(good)), good), "13"},
		{"no message of ours", fullMethod, "POST", nil, frame(0, 3, []byte{1<<3 | 2, 9, 0}), "13"},
		{"a number for the CSR", fullMethod, "POST", nil, frame(0, 2, []byte{1 << 3, 9}), "13"},
		{"two tokens", fullMethod, "POST", []string{"Bearer a", "Bearer b"}, frame(0, int64(len(good)), good), "16"},
		{"another scheme", fullMethod, "POST", []string{"Basic YTpi"}, frame(0, int64(len(good)), good), "16"},
		{"an empty token", fullMethod, "POST", []string{"Bearer "}, frame(0, int64(len(good)), good), "16"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tc.method, srv.URL+tc.path, bytes.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header["Authorization"] = tc.auth
			req.Header.Set("Content-Type", "application/grpc")
			req.Header.Set("TE", "trailers")
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatal(err)
			}
			got := resp.Trailer.Get("Grpc-Status")
			if got == "" {
				got = resp.Header.Get("Grpc-Status")
			}
			if got != tc.status {
				t.Errorf("grpc-status %q, want %q (%s)", got, tc.status, resp.Trailer.Get("Grpc-Message"))
			}
		})
	}
}

// istioRequest is the message as Istio's .proto has it, read by the protobuf module.
func istioRequest(t testing.TB) *dynamicpb.Message {
	t.Helper()
	field := func(name string, number int32, kind descriptorpb.FieldDescriptorProto_Type) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{Name: &name, Number: &number, Type: &kind,
			Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("ca.proto"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("IstioCertificateRequest"), Field: []*descriptorpb.FieldDescriptorProto{
			field("csr", 1, descriptorpb.FieldDescriptorProto_TYPE_STRING), field("validity_duration", 3, descriptorpb.FieldDescriptorProto_TYPE_INT64),
		}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dynamicpb.NewMessage(file.Messages().Get(0))
}

// FuzzRequest: what we read of a request, the protobuf module reads too.
func FuzzRequest(f *testing.F) {
	f.Add((&request{csr: "-----BEGIN", seconds: 3600}).marshal())
	f.Add([]byte{1<<3 | 2, 0, 3 << 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Add([]byte{4<<3 | 2, 2, 1, 1, 5<<3 | 3, 5<<3 | 4, 7<<3 | 5, 1, 2, 3, 4})
	f.Add([]byte{1<<3 | 2, 200})
	f.Fuzz(func(t *testing.T, data []byte) {
		var r request
		if err := (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, &r); err != nil {
			return
		}
		m := istioRequest(t)
		if err := proto.Unmarshal(data, m); err != nil {
			if strings.Contains(err.Error(), "UTF-8") {
				return // a CSR that is not even text is refused as PEM
			}
			t.Fatalf("we read %+v, and protobuf: %v", r, err)
		}
		fields := m.Descriptor().Fields()
		if csr, seconds := m.Get(fields.ByNumber(1)).String(), m.Get(fields.ByNumber(3)).Int(); csr != r.csr || seconds != r.seconds {
			t.Errorf("we read %+v, and protobuf %q, %d", r, csr, seconds)
		}
		if (r.ttl() < 0) != (r.seconds < 0) {
			t.Errorf("%d seconds are %v", r.seconds, r.ttl())
		}
		var again request
		if err := again.unmarshal(r.marshal()); err != nil || again != r {
			t.Errorf("%+v is written and read as %+v, %v", r, again, err)
		}
	})
}

// FuzzResponse: a chain that is read is written again as it was.
func FuzzResponse(f *testing.F) {
	f.Add((&response{chain: []string{"leaf", "root"}}).marshal())
	f.Add(protowire.AppendTag(nil, 1, protowire.StartGroupType))
	f.Add([]byte{1 << 3, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var r, again response
		if r.unmarshal(data) != nil {
			return
		}
		if len(r.chain) > maxCerts {
			t.Errorf("%d certificates", len(r.chain))
		}
		if err := again.unmarshal(r.marshal()); err != nil || !slices.Equal(again.chain, r.chain) {
			t.Errorf("%q is written and read as %q, %v", r.chain, again.chain, err)
		}
	})
}
