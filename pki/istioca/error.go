package istioca

import (
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Code says why a CA gave no certificate. The values are those of gRPC.
type Code codes.Code

// Codes of an Error.
const (
	InvalidArgument   = Code(codes.InvalidArgument)   // the CSR is not one that is signed
	Unauthenticated   = Code(codes.Unauthenticated)   // no proof of who asks, or a wrong one
	PermissionDenied  = Code(codes.PermissionDenied)  // who asks may not have what the CSR asks for
	ResourceExhausted = Code(codes.ResourceExhausted) // too many at once; ask again later
	Unavailable       = Code(codes.Unavailable)       // there is no CA, or none that signs now; ask again later
	Internal          = Code(codes.Internal)          // the CA failed
)

// maxErrorBytes is how much of a server's text a client keeps.
const maxErrorBytes = 1 << 10

// Error is why a CA gave no certificate: what a server's function returns, and what a client gets.
type Error struct {
	Code   Code
	Detail string // what is wrong, and what would be right; the client gets to read it
	Err    error  // the cause, or nil; the client does not get it
}

// Error returns the code in words, the detail and the cause.
func (e *Error) Error() string {
	text := fmt.Sprintf("%s: %s", codes.Code(e.Code), e.Detail)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// GRPCStatus makes gRPC send the code and the detail.
func (e *Error) GRPCStatus() *status.Status { return status.New(codes.Code(e.Code), e.Detail) }

// fromStatus makes an Error of what a call returned.
func fromStatus(err error) *Error {
	s := status.Convert(err)
	text := s.Message()
	if len(text) > maxErrorBytes {
		text = text[:maxErrorBytes] + "..."
	}
	return &Error{Code: Code(s.Code()), Detail: text}
}
