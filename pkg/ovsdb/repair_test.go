package ovsdb

import (
	"fmt"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
)

// TestManyPodPorts: comparing a bridge that is in sync takes time in proportion to its ports. 30,000 took 12 seconds
// with a linear search for each.
func TestManyPodPorts(t *testing.T) {
	const n = 30_000
	b := &bridgeRow{UUID: "b", Name: "weft"}
	v := &dbSnapshot{name: "weft", bridges: map[string]*bridgeRow{"b": b}, ports: map[string]*portRow{},
		ifaces: map[string]*interfaceRow{}}
	for i := range n {
		id := fmt.Sprint(i)
		v.ports["p"+id] = &portRow{UUID: "p" + id, Name: id, Interfaces: []string{"i" + id}}
		v.ifaces["i"+id] = &interfaceRow{UUID: "i" + id, Name: id, OFPortRequest: ptr(int(model.PortPodMin)),
			ExternalIDs: map[string]string{
				idPod: "default/web", idContainerID: id, idIfName: "eth0", idOFPort: fmt.Sprint(
					model.PortPodMin), idMAC: "0a:58:0a:00:00:02", idIPs: "10.0.0.2",
			}}
		b.Ports = append(b.Ports, "p"+id)
	}
	took := testenv.CPU(t, func() {
		v.index()
		p := &changeSet{snap: v}
		if err := p.podPorts(nil); err != nil || len(p.changed) > 0 {
			t.Errorf("changed %d, error %v", len(p.changed), err)
		}
		if got := len(v.podInterfaces()); got != n {
			t.Errorf("%d pods' interfaces, want %d", got, n)
		}
	})
	t.Log(took)
	if took > testenv.Patience(3*time.Second) {
		t.Errorf("took %v", took)
	}
}
