package main_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// echoService answers with what it was sent.
type echoService struct {
	pb.UnimplementedTestServiceServer
	// EmptyCall lasts until it is cancelled.
	started   chan struct{}
	cancelled chan error
}

func (echoService) UnaryCall(_ context.Context, r *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	if s := r.GetResponseStatus(); s != nil {
		return nil, status.Error(codes.Code(s.GetCode()), s.GetMessage())
	}
	return &pb.SimpleResponse{Payload: r.GetPayload()}, nil
}

func (s echoService) EmptyCall(ctx context.Context, _ *pb.Empty) (*pb.Empty, error) {
	s.started <- struct{}{}
	<-ctx.Done()
	s.cancelled <- ctx.Err()
	return nil, ctx.Err()
}

func (echoService) StreamingInputCall(st grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	n := 0
	for {
		r, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return st.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: int32(n)})
		}
		if err != nil {
			return err
		}
		n += len(r.GetPayload().GetBody())
	}
}

func (echoService) FullDuplexCall(st grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	for {
		r, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := st.Send(&pb.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

// TestForeignGRPC has an unmodified grpc-go client before a forwarded port and an unmodified grpc-go server behind the
// exit.
func TestForeignGRPC(t *testing.T) {
	m := newMesh(t)
	exit := m.exit(t)
	secure := m.webTLS(t)
	for _, tt := range []struct {
		name   string
		server []grpc.ServerOption
		client credentials.TransportCredentials
	}{
		{"plain", nil, insecure.NewCredentials()},
		{"TLS", []grpc.ServerOption{grpc.Creds(credentials.NewTLS(secure))}, credentials.NewClientTLSFromCert(m.roots, "localhost")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ln := loopback(t)
			service := echoService{started: make(chan struct{}, 1), cancelled: make(chan error, 1)}
			srv := grpc.NewServer(tt.server...)
			pb.RegisterTestServiceServer(srv, service)
			var serving sync.WaitGroup
			serving.Go(func() { // ends with Stop; Wait in the cleanup
				if err := srv.Serve(ln); err != nil {
					t.Error(err)
				}
			})
			t.Cleanup(func() {
				srv.Stop()
				serving.Wait()
			})
			entry := m.forward(t, exit.addr, ln.Addr().String())
			grpcCalls(t, service, entry.addr, grpc.WithTransportCredentials(tt.client))
			entry.idle(t)
			exit.idle(t)
		})
	}
}

// grpcUnary makes calls at the same time, and one that fails.
// grpcCalls makes calls of every kind to service at addr, on one connection, which is closed then.
func grpcCalls(t *testing.T, service echoService, addr string, options ...grpc.DialOption) {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+addr, options...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	c := pb.NewTestServiceClient(cc)
	t.Run("unary", func(t *testing.T) { grpcUnary(ctx, t, c) })
	t.Run("client stream", func(t *testing.T) { grpcClientStream(ctx, t, c) })
	t.Run("bidi stream", func(t *testing.T) { grpcBidi(ctx, t, c) })
	t.Run("cancelled", func(t *testing.T) { grpcCancelled(ctx, t, c, service) })
	if err := cc.Close(); err != nil {
		t.Error(err)
	}
}

func grpcUnary(ctx context.Context, t *testing.T, c pb.TestServiceClient) {
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { // ends with the call; Wait below
			body := random(64 << 10)
			res, err := c.UnaryCall(ctx, &pb.SimpleRequest{Payload: &pb.Payload{Body: body}})
			if err != nil || !bytes.Equal(res.GetPayload().GetBody(), body) {
				t.Errorf("UnaryCall = %d bytes, %v, want the %d that were sent", len(res.GetPayload().GetBody()), err, len(body))
			}
		})
	}
	all.Wait()
	_, err := c.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.DataLoss), Message: "as asked"}})
	if s := status.Convert(err); s.Code() != codes.DataLoss || s.Message() != "as asked" {
		t.Errorf("UnaryCall with a status = %v, want DataLoss", err)
	}
}

func grpcClientStream(ctx context.Context, t *testing.T, c pb.TestServiceClient) {
	st, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	body := random(100 << 10)
	for range 50 {
		if err := st.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: body}}); err != nil {
			t.Fatal(err)
		}
	}
	if res, err := st.CloseAndRecv(); err != nil || int(res.GetAggregatedPayloadSize()) != 50*len(body) {
		t.Errorf("StreamingInputCall = %d bytes, %v, want %d", res.GetAggregatedPayloadSize(), err, 50*len(body))
	}
}

// grpcBidi sends and receives in turn, so that a message that is held back anywhere stops it.
func grpcBidi(ctx context.Context, t *testing.T, c pb.TestServiceClient) {
	st, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		body := random(i * i) // 0 to 39,601 bytes
		if err := st.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: body}}); err != nil {
			t.Fatal(err)
		}
		if res, err := st.Recv(); err != nil || !bytes.Equal(res.GetPayload().GetBody(), body) {
			t.Fatalf("message %d = %d bytes, %v, want %d", i, len(res.GetPayload().GetBody()), err, len(body))
		}
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after CloseSend = %v, want EOF", err)
	}
}

// grpcCancelled shows that a cancelled call is cancelled at the server.
func grpcCancelled(ctx context.Context, t *testing.T, c pb.TestServiceClient, service echoService) {
	call, cancel := context.WithCancel(ctx)
	var calling sync.WaitGroup
	calling.Go(func() { // ends with cancel; Wait below
		if _, err := c.EmptyCall(call, &pb.Empty{}); status.Code(err) != codes.Canceled {
			t.Errorf("EmptyCall = %v, want Canceled", err)
		}
	})
	select {
	case <-service.started:
	case <-ctx.Done():
		t.Error("the call does not reach the server")
	}
	cancel()
	calling.Wait()
	select {
	case err := <-service.cancelled:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("at the server = %v, want Canceled", err)
		}
	case <-ctx.Done():
		t.Error("the server does not learn of it")
	}
}
