package peers

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
)

// grpcMethod is the one method: a bidirectional stream of chunks.
const grpcMethod = "/culvert.bench.Relay/Tunnel"

// grpcChunkBytes is what one message carries at most, as io.Copy would have it.
const grpcChunkBytes = 32 << 10

// chunk is one message. An empty one ends its direction, because a gRPC server can end its half of a stream only
// together with the stream.
type chunk struct{ data mem.BufferSlice }

// rawCodec carries chunks as they are, by reference.
type rawCodec struct{}

func (rawCodec) Name() string { return "raw" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	c, ok := v.(*chunk)
	if !ok {
		return nil, fmt.Errorf("%T is no chunk", v)
	}
	return c.data, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	c, ok := v.(*chunk)
	if !ok {
		return fmt.Errorf("%T is no chunk", v)
	}
	data.Ref() // gRPC drops its own when this returns
	c.data = data
	return nil
}

// grpcStream is what both halves of a stream have.
type grpcStream interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// grpcEntry opens a stream for every connection, all on one HTTP/2 connection. Windows are 4 MiB a stream and
// 16 MiB a connection.
func grpcEntry(conf *tls.Config, to string, ln net.Listener) error {
	cc, err := grpc.NewClient("passthrough:///"+to,
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithInitialWindowSize(streamWindowBytes), grpc.WithInitialConnWindowSize(connWindowBytes),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	if err != nil {
		return err
	}
	defer cc.Close()
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	return accept(ln, func(c net.Conn) {
		defer c.Close()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		stream, err := cc.NewStream(ctx, desc, grpcMethod)
		if err != nil {
			return
		}
		if err := grpcJoin(stream, c.(*net.TCPConn)); err != nil {
			return
		}
		_ = stream.CloseSend()         // never fails
		_ = stream.RecvMsg(new(chunk)) // io.EOF: the handler has returned
	})
}

// grpcExit connects to the target for every stream.
func grpcExit(conf *tls.Config, to string, ln net.Listener) error {
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(conf)),
		grpc.InitialWindowSize(streamWindowBytes), grpc.InitialConnWindowSize(connWindowBytes),
		grpc.ForceServerCodecV2(rawCodec{}),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			out, err := dialTCP(stream.Context(), to)
			if err != nil {
				return err
			}
			defer out.Close()
			return grpcJoin(stream, out)
		}))
	return server.Serve(ln)
}

// grpcJoin copies both ways until both directions have ended, or one has failed.
func grpcJoin(stream grpcStream, c *net.TCPConn) error {
	var sent sync.WaitGroup
	var sendErr error
	sent.Go(func() {
		if sendErr = grpcSend(stream, c); sendErr != nil {
			_ = c.Close()
		}
	})
	err := grpcReceive(c, stream)
	if err != nil {
		_ = c.Close()
	}
	sent.Wait()
	if err != nil {
		return err
	}
	return sendErr
}

// grpcSend sends what c receives. The buffers come from gRPC's pool and go back there when they are written.
func grpcSend(stream grpcStream, c net.Conn) error {
	pool := mem.DefaultBufferPool()
	for {
		buf := pool.Get(grpcChunkBytes)
		n, err := c.Read(*buf)
		if n > 0 {
			*buf = (*buf)[:n]
			if err := stream.SendMsg(&chunk{mem.BufferSlice{mem.NewBuffer(buf, pool)}}); err != nil {
				return err
			}
		} else {
			pool.Put(buf)
		}
		if err == io.EOF {
			return stream.SendMsg(new(chunk))
		}
		if err != nil {
			return err
		}
	}
}

// grpcReceive writes what the stream brings to c.
func grpcReceive(c *net.TCPConn, stream grpcStream) error {
	for {
		var in chunk
		if err := stream.RecvMsg(&in); err != nil {
			return err
		}
		if in.data.Len() == 0 {
			return c.CloseWrite()
		}
		for _, b := range in.data {
			if _, err := c.Write(b.ReadOnlyData()); err != nil {
				in.data.Free()
				return err
			}
		}
		in.data.Free()
	}
}
