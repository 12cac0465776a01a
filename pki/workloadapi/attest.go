package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
)

// attestation hands who is at the other end of the socket to the calls. There is no encryption: the bytes stay in the
// kernel.
type attestation struct{}

// peerInfo is credentials.AuthInfo of a connection.
type peerInfo struct{ *peer }

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "unix" }

// errServerOnly is for the half of the interface that a server does not use.
var errServerOnly = errors.New("BUG: a server's credentials at a client")

// ClientHandshake implements credentials.TransportCredentials.
func (attestation) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errServerOnly
}

// ServerHandshake implements credentials.TransportCredentials.
func (attestation) ServerHandshake(nc net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := nc.(*conn)
	if !ok {
		return nil, nil, fmt.Errorf("BUG: a connection of type %T", nc)
	}
	return c, peerInfo{c.peer}, nil
}

// Info implements credentials.TransportCredentials.
func (attestation) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone implements credentials.TransportCredentials.
func (a attestation) Clone() credentials.TransportCredentials { return a }

// OverrideServerName implements credentials.TransportCredentials.
func (attestation) OverrideServerName(string) error { return errServerOnly }

// caller attests the process that calls, anew for each call: it may have executed another program since it connected.
func caller(ctx context.Context) (*process, error) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return nil, errors.New("BUG: a call without a connection")
	}
	info, ok := p.AuthInfo.(peerInfo)
	if !ok {
		return nil, errors.New("BUG: a connection that was not attested")
	}
	return info.attest()
}
