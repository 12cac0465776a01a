package tunnel

import (
	"sync"

	"culvert/tunnel/endpoint"
)

// pooledStream gives its place on the transport back when it is closed.
type pooledStream struct {
	Stream
	from  *pooled
	lease *endpoint.Lease // of the endpoint that it leads to; nil: the hop has one address
	once  sync.Once
}

// Close closes the stream.
func (s *pooledStream) Close() error {
	err := s.Stream.Close()
	s.once.Do(s.giveBack)
	return err
}

// Reset resets the stream.
func (s *pooledStream) Reset(cause error) {
	s.Stream.Reset(cause)
	s.once.Do(s.giveBack)
}

func (s *pooledStream) giveBack() {
	s.from.giveBack()
	if s.lease != nil {
		s.lease.Done(endpoint.Served, nil)
	}
}

// giveBack ends the use of a stream that was set aside.
func (t *pooled) giveBack() {
	t.group.mu.Lock()
	t.inUse--
	t.group.mu.Unlock()
}
