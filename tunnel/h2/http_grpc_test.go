package h2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"culvert/tunnel/h2"
)

// grpcService is a small service; the message of a request says what to do.
type grpcService struct {
	pb.UnimplementedTestServiceServer
	ended chan error // why the context of a hanging call ended
}

func (s *grpcService) UnaryCall(ctx context.Context, in *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	switch string(in.GetPayload().GetBody()) {
	case "metadata":
		grpc.SendHeader(ctx, metadata.Pairs("x-head", "1", "x-bin-bin", "\x00\xff"))
		grpc.SetTrailer(ctx, metadata.Pairs("x-tail", "2", "x-tail", "3", "x-tail-bin", "\x01\xfe"))
		p, _ := peer.FromContext(ctx)
		return &pb.SimpleResponse{Username: fmt.Sprintf("%q %q %v %v", md["x-asked"], md["x-asked-bin"], p.Addr != nil, p.AuthInfo != nil)}, nil
	case "fail":
		st, err := status.New(codes.FailedPrecondition, "not now: ü\n%").WithDetails(&errdetails.ErrorInfo{Reason: "WHY", Domain: "d"})
		if err != nil {
			return nil, err
		}
		grpc.SetTrailer(ctx, metadata.Pairs("x-tail", "with error"))
		return nil, st.Err()
	case "hang":
		<-ctx.Done()
		s.ended <- ctx.Err()
		return nil, ctx.Err()
	}
	return &pb.SimpleResponse{Payload: in.GetPayload()}, nil
}

func (s *grpcService) StreamingOutputCall(in *pb.StreamingOutputCallRequest, out grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	for _, p := range in.GetResponseParameters() {
		if err := out.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, p.GetSize())}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *grpcService) StreamingInputCall(in grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	n := 0
	for {
		m, err := in.Recv()
		if err == io.EOF {
			return in.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: int32(n)})
		}
		if err != nil {
			return err
		}
		if n += len(m.GetPayload().GetBody()); n > 1<<28 {
			return status.Error(codes.ResourceExhausted, "enough")
		}
		if len(m.GetPayload().GetBody()) == 13 {
			return status.Error(codes.Aborted, "unlucky") // while the client goes on sending
		}
	}
}

func (s *grpcService) FullDuplexCall(st grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	for {
		m, err := st.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			s.ended <- err
			return err
		}
		if err := st.Send(&pb.StreamingOutputCallResponse{Payload: m.GetPayload()}); err != nil {
			return err
		}
	}
}

// eachGRPC runs f with a grpc-go client of every kind of way to the service: grpc-go's handler on our
// server, without and with TLS, and grpc-go's own server at the other end of a tunnel of ours.
func eachGRPC(t *testing.T, f func(t *testing.T, c pb.TestServiceClient, s *grpcService, withTLS bool)) {
	t.Helper()
	for _, way := range []string{"handler h2c", "handler tls", "tunnel"} {
		t.Run(way, func(t *testing.T) {
			service := &grpcService{ended: make(chan error, 1)}
			gs := grpc.NewServer(grpc.MaxRecvMsgSize(8 << 20))
			pb.RegisterTestServiceServer(gs, service)
			t.Cleanup(gs.Stop)
			creds := insecure.NewCredentials()
			withTLS := way == "handler tls"
			if withTLS {
				creds = credentials.NewTLS(newHTTPTLS().client)
			}
			var dial func(context.Context, string) (net.Conn, error)
			if way == "tunnel" {
				dial = grpcTunnel(t, gs)
			} else {
				addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(gs)}, withTLS)
				dial = func(ctx context.Context, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
				}
			}
			cc, err := grpc.NewClient("passthrough:///127.0.0.1", grpc.WithTransportCredentials(creds), grpc.WithContextDialer(dial),
				grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cc.Close() })
			f(t, pb.NewTestServiceClient(cc), service, withTLS)
		})
	}
}

// grpcTunnel serves gs on the streams of a connection of ours and returns how to dial one.
func grpcTunnel(t *testing.T, gs *grpc.Server) func(context.Context, string) (net.Conn, error) {
	ln := &streamListener{ch: make(chan net.Conn), done: make(chan struct{})}
	addr := httpListen(t, &h2.Config{Handler: func(st *h2.Stream) {
		if st.Respond(&h2.Header{Status: 200}, false) == nil && ln.offer(st) {
			return
		}
		st.Close()
	}}, false)
	conn := httpDial(t, nil, addr, false)
	served := make(chan struct{})
	go func() { // ends when gs.Stop closes the listener; the cleanup waits
		defer close(served)
		gs.Serve(ln)
	}()
	t.Cleanup(func() { gs.Stop(); <-served })
	return func(ctx context.Context, _ string) (net.Conn, error) {
		st, err := conn.Open(ctx, &h2.Header{Method: "CONNECT", Authority: "service:1"}, false)
		if err != nil {
			return nil, err
		}
		if _, err := st.Response(ctx); err != nil {
			st.Close()
			return nil, err
		}
		return st, nil
	}
}

// streamListener is a net.Listener of streams.
type streamListener struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *streamListener) offer(c net.Conn) bool {
	select {
	case l.ch <- c:
		return true
	case <-l.done:
		return false
	}
}

func (l *streamListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *streamListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *streamListener) Addr() net.Addr { return &net.TCPAddr{} }

func payload(s string) *pb.Payload { return &pb.Payload{Body: []byte(s)} }

// TestGRPCUnary makes simple calls.
func TestGRPCUnary(t *testing.T) {
	eachGRPC(t, func(t *testing.T, c pb.TestServiceClient, s *grpcService, withTLS bool) {
		t.Run("metadata", func(t *testing.T) {
			var head, tail metadata.MD
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x-asked", "a", "x-asked", "b", "x-asked-bin", "\x00\x80")
			r, err := c.UnaryCall(ctx, &pb.SimpleRequest{Payload: payload("metadata")}, grpc.Header(&head), grpc.Trailer(&tail))
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("%q %q true %v", []string{"a", "b"}, []string{"\x00\x80"}, withTLS); r.GetUsername() != want {
				t.Errorf("server saw %q, want %q", r.GetUsername(), want)
			}
			if fmt.Sprint(head["x-head"], head["x-bin-bin"], tail["x-tail"], tail["x-tail-bin"]) != "[1] [\x00\xff] [2 3] [\x01\xfe]" {
				t.Errorf("header %v, trailer %v", head, tail)
			}
		})
		t.Run("error with details", func(t *testing.T) {
			var tail metadata.MD
			_, err := c.UnaryCall(t.Context(), &pb.SimpleRequest{Payload: payload("fail")}, grpc.Trailer(&tail))
			st := status.Convert(err)
			if st.Code() != codes.FailedPrecondition || st.Message() != "not now: ü\n%" || len(st.Details()) != 1 ||
				st.Details()[0].(*errdetails.ErrorInfo).GetReason() != "WHY" || tail.Get("x-tail")[0] != "with error" {
				t.Errorf("status = %v, details %v, trailer %v", st, st.Details(), tail)
			}
		})
		t.Run("unimplemented", func(t *testing.T) {
			if _, err := c.UnimplementedCall(t.Context(), &pb.Empty{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("error = %v", err)
			}
		})
		t.Run("4 MiB", func(t *testing.T) {
			body := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
			r, err := c.UnaryCall(t.Context(), &pb.SimpleRequest{Payload: &pb.Payload{Body: body}})
			if err != nil || !bytes.Equal(r.GetPayload().GetBody(), body) {
				t.Errorf("%d bytes, %v", len(r.GetPayload().GetBody()), err)
			}
		})
		t.Run("deadline", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{Payload: payload("hang")}); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("error = %v", err)
			}
			<-s.ended
		})
		t.Run("cancel", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(30*time.Millisecond, cancel)
			if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{Payload: payload("hang")}); status.Code(err) != codes.Canceled {
				t.Errorf("error = %v", err)
			}
			if err := <-s.ended; !errors.Is(err, context.Canceled) {
				t.Errorf("handler's context = %v", err)
			}
		})
		t.Run("many at once", func(t *testing.T) {
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					for j := range 20 {
						want := strings.Repeat(fmt.Sprint(i, j), 100)
						r, err := c.UnaryCall(t.Context(), &pb.SimpleRequest{Payload: payload(want)})
						if err != nil || string(r.GetPayload().GetBody()) != want {
							t.Errorf("call %d %d = %v", i, j, err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	})
}

// TestGRPCStreams makes streaming calls.
func TestGRPCStreams(t *testing.T) {
	eachGRPC(t, func(t *testing.T, c pb.TestServiceClient, s *grpcService, _ bool) {
		t.Run("server", func(t *testing.T) {
			req := &pb.StreamingOutputCallRequest{}
			for i := range 100 {
				req.ResponseParameters = append(req.ResponseParameters, &pb.ResponseParameters{Size: int32(i * 1000)})
			}
			st, err := c.StreamingOutputCall(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 100 {
				if m, err := st.Recv(); err != nil || len(m.GetPayload().GetBody()) != i*1000 {
					t.Fatalf("message %d: %d bytes, %v", i, len(m.GetPayload().GetBody()), err)
				}
			}
			if _, err := st.Recv(); err != io.EOF {
				t.Errorf("end = %v", err)
			}
		})
		t.Run("client", func(t *testing.T) {
			st, err := c.StreamingInputCall(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for range 100 {
				if err := st.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: make([]byte, 10000)}}); err != nil {
					t.Fatal(err)
				}
			}
			if r, err := st.CloseAndRecv(); err != nil || r.GetAggregatedPayloadSize() != 1000000 {
				t.Errorf("answer = %v, %v", r, err)
			}
		})
		t.Run("server ends first", func(t *testing.T) {
			st, err := c.StreamingInputCall(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				err = st.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: make([]byte, 13)}})
			}
			if _, err = st.CloseAndRecv(); status.Code(err) != codes.Aborted {
				t.Errorf("error = %v", err)
			}
		})
		t.Run("both", func(t *testing.T) {
			st, err := c.FullDuplexCall(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i := range 300 {
				want := strings.Repeat("x", i*i)
				if err := st.Send(&pb.StreamingOutputCallRequest{Payload: payload(want)}); err != nil {
					t.Fatal(err)
				}
				if m, err := st.Recv(); err != nil || string(m.GetPayload().GetBody()) != want {
					t.Fatalf("message %d: %d bytes, %v", i, len(m.GetPayload().GetBody()), err)
				}
			}
			st.CloseSend()
			if _, err := st.Recv(); err != io.EOF {
				t.Errorf("end = %v", err)
			}
		})
		t.Run("cancel", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			st, err := c.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			st.Send(&pb.StreamingOutputCallRequest{Payload: payload("x")})
			if _, err := st.Recv(); err != nil {
				t.Fatal(err)
			}
			cancel()
			if _, err := st.Recv(); status.Code(err) != codes.Canceled {
				t.Errorf("error = %v", err)
			}
			if err := <-s.ended; status.Code(err) != codes.Canceled {
				t.Errorf("handler's Recv = %v, want Canceled", err)
			}
		})
	})
}

// TestGRPCByRoundTrip speaks to grpc-go's own server through our RoundTripper.
func TestGRPCByRoundTrip(t *testing.T) {
	gs := grpc.NewServer()
	pb.RegisterTestServiceServer(gs, &grpcService{ended: make(chan error, 1)})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { // ends when gs.Stop closes the listener; the cleanup waits
		defer close(served)
		gs.Serve(ln)
	}()
	t.Cleanup(func() { gs.Stop(); <-served })
	c := httpDial(t, nil, ln.Addr().String(), false)
	for _, body := range []string{"hello", "fail"} {
		msg, err := proto.Marshal(&pb.SimpleRequest{Payload: payload(body)})
		if err != nil {
			t.Fatal(err)
		}
		frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
		req, _ := http.NewRequest("POST", "http://"+ln.Addr().String()+"/grpc.testing.TestService/UnaryCall", bytes.NewReader(frame))
		req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
		resp, err := c.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		grpcStatus := resp.Trailer.Get("Grpc-Status") + resp.Header.Get("Grpc-Status") // trailers-only answers are headers
		if body == "fail" {
			if grpcStatus != "9" {
				t.Errorf("grpc-status = %s, want 9", grpcStatus)
			}
			continue
		}
		var m pb.SimpleResponse
		if len(b) < 5 || proto.Unmarshal(b[5:], &m) != nil || string(m.GetPayload().GetBody()) != body || grpcStatus != "0" {
			t.Errorf("answer %q, trailer %v", b, resp.Trailer)
		}
	}
	wantNoStreams(t, c)
}
