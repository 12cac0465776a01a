package rules

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/google/nftables"
)

// setElements adds to the sets of ports the protocols that are served there, or takes them out. An element that is
// there is replaced: systems before Linux 6.12 do not prolong one.
func setElements(ports []Served, on bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reach the packet filter: %w", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	for _, s := range ports {
		set := &nftables.Set{Table: table, Name: gateSet(s.Port), KeyType: nftables.TypeInetProto, HasTimeout: true}
		var elements []nftables.SetElement
		if s.TCP {
			elements = append(elements, nftables.SetElement{Key: []byte{syscall.IPPROTO_TCP}, Timeout: aliveFor})
		}
		if s.UDP {
			elements = append(elements, nftables.SetElement{Key: []byte{syscall.IPPROTO_UDP}, Timeout: aliveFor})
		}
		bare := make([]nftables.SetElement, len(elements))
		for i := range elements {
			bare[i].Key = elements[i].Key
		}
		// Deleting what is not there would fail, so it is added before.
		if err := errors.Join(c.SetAddElements(set, elements), c.SetDeleteElements(set, bare)); err != nil {
			return fmt.Errorf("tell the packet filter: %w", err)
		}
		if on {
			if err := c.SetAddElements(set, elements); err != nil {
				return fmt.Errorf("tell the packet filter: %w", err)
			}
		}
	}
	switch err := c.Flush(); {
	case errors.Is(err, syscall.ENOENT):
		return nil // the table was removed since its record was read
	case err != nil:
		return fmt.Errorf("tell the packet filter: %w", err)
	}
	return nil
}
