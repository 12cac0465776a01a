package istioca

import (
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// The service and its one method, as Istio names them.
const (
	serviceName = "istio.v1.auth.IstioCertificateService"
	methodName  = "CreateCertificate"
	fullMethod  = "/" + serviceName + "/" + methodName
)

const (
	// MaxMessageBytes bounds a request and a response. A request is a CSR, about 500 bytes; a response five
	// certificates of about 1 KiB.
	MaxMessageBytes = 64 << 10
	// maxCerts is how many certificates a client takes in a response: a chain and a few roots.
	maxCerts = 16
)

// The numbers of the fields of IstioCertificateRequest and IstioCertificateResponse. Field 4 of the request, a Struct
// with metadata, is passed over.
const (
	fieldCSR       = 1
	fieldValidity  = 3
	fieldCertChain = 1
)

// request is IstioCertificateRequest.
type request struct {
	csr string
	// seconds is the validity that is asked for, 0 for what the CA thinks right.
	seconds int64
}

// response is IstioCertificateResponse: PEM, the leaf first, intermediates after it, the root last.
type response struct{ chain []string }

// ttl returns the validity that is asked for. What a Duration cannot hold is its greatest value.
func (r *request) ttl() time.Duration {
	switch {
	case r.seconds > math.MaxInt64/int64(time.Second):
		return math.MaxInt64
	case r.seconds < 0:
		return -1
	}
	return time.Duration(r.seconds) * time.Second
}

func (r *request) marshal() []byte {
	out := protowire.AppendTag(nil, fieldCSR, protowire.BytesType)
	out = protowire.AppendString(out, r.csr)
	if r.seconds != 0 {
		out = protowire.AppendTag(out, fieldValidity, protowire.VarintType)
		out = protowire.AppendVarint(out, uint64(r.seconds))
	}
	return out
}

func (r *request) unmarshal(data []byte) error {
	*r = request{}
	return eachField(data, func(number protowire.Number, value []byte, varint uint64) error {
		switch {
		case number == fieldCSR && value != nil:
			r.csr = string(value)
		case number == fieldValidity && value == nil:
			r.seconds = int64(varint)
		case number == fieldCSR || number == fieldValidity:
			return fmt.Errorf("field %d is of another type", number)
		}
		return nil
	})
}

func (r *response) marshal() []byte {
	var out []byte
	for _, cert := range r.chain {
		out = protowire.AppendTag(out, fieldCertChain, protowire.BytesType)
		out = protowire.AppendString(out, cert)
	}
	return out
}

func (r *response) unmarshal(data []byte) error {
	*r = response{}
	return eachField(data, func(number protowire.Number, value []byte, _ uint64) error {
		switch {
		case number != fieldCertChain:
		case value == nil:
			return fmt.Errorf("field %d is of another type", number)
		case len(r.chain) == maxCerts:
			return fmt.Errorf("there are more than %d certificates", maxCerts)
		default:
			r.chain = append(r.chain, string(value))
		}
		return nil
	})
}

// eachField calls f for every field of a message that is a varint, for which value is nil, or bytes. Fields of other
// types are passed over: unknown ones are to be ignored.
func eachField(data []byte, f func(number protowire.Number, value []byte, varint uint64) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if !number.IsValid() {
			return fmt.Errorf("there is no field %d", number)
		}
		data = data[n:]
		var value []byte
		var varint uint64
		known := true
		switch kind {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(data)
			if value == nil {
				value = []byte{}
			}
		case protowire.VarintType:
			varint, n = protowire.ConsumeVarint(data)
		default:
			n, known = protowire.ConsumeFieldValue(number, kind, data), false
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if !known {
			continue
		}
		if err := f(number, value, varint); err != nil {
			return err
		}
	}
	return nil
}

// message is a request or a response.
type message interface {
	marshal() []byte
	unmarshal([]byte) error
}

// errMessage is for a value that is neither; only this package makes them.
var errMessage = errors.New("BUG: no message of this service")

// codec is the codec of the two messages for gRPC. It is handed to servers and calls; nothing is registered.
type codec struct{}

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(message)
	if !ok {
		return nil, errMessage
	}
	return mem.BufferSlice{mem.SliceBuffer(m.marshal())}, nil
}

// Unmarshal implements encoding.CodecV2. Nothing of data is kept.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(message)
	if !ok {
		return errMessage
	}
	return m.unmarshal(data.Materialize())
}

// Name implements encoding.CodecV2: the messages are protocol buffers.
func (codec) Name() string { return "proto" }
