//go:build !linux

package workloadapi

import (
	"errors"
	"net"
)

// errNoAttestation: other systems tell the user of a socket's other end, but not its program in a way that holds.
var errNoAttestation = errors.New("processes can be attested on Linux only")

func canAttest() error { return errNoAttestation }

// peer is the process that opened a connection.
type peer struct{ uid uint32 }

func peerOf(*net.UnixConn) (*peer, error) { return nil, errNoAttestation }

func (*peer) close() error { return nil }

func (*peer) attest() (*process, error) { return nil, errNoAttestation }
