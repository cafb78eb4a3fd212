package agent

import (
	"context"
	"fmt"
	"slices"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report/api"
)

// Send implements api.Source. The packet enters the pipeline at the pod's port, so the checks of the pod's own packets
// hold for it. It leaves nothing but what a packet of the pod leaves: a tracked connection until its timeout.
func (r reporter) Send(ctx context.Context, request api.SendRequest) error {
	if !r.a.isReady() {
		return errNotProgrammed
	}
	packet, err := packetFrom(r.a.loop.View(), request)
	if err != nil {
		return err
	}
	r.a.log.Info("sending a packet for a trace", "pod", request.Pod, "source", request.Source,
		"destination", request.Destination, "protocol", request.Protocol)
	return r.a.sw.Send(ctx, []ofswitch.PacketOut{packet})
}

// ported are the protocols with ports that connections are begun in.
var ported = []uint8{openflow.IPProtoTCP, openflow.IPProtoUDP, openflow.IPProtoSCTP}

// packetFrom makes the packet of a request at the port of its pod.
func packetFrom(view *model.Snapshot, request api.SendRequest) (p ofswitch.PacketOut, err error) {
	source, to := request.Source.Addr(), request.Destination.Addr()
	c := openflow.Connection{Protocol: request.Protocol, Source: request.Source, Destination: request.Destination}
	c.ICMP.ID = request.Source.Port()
	for _, a := range view.Attachments {
		if a.Pod.String() == request.Pod && slices.Contains(a.IPs, source) {
			p.InPort, p.Packet = a.OFPort, c.First(a.MAC, model.RouterMAC)
		}
	}
	switch {
	case p.InPort == 0:
		return p, fmt.Errorf("pod %s is not attached to this node with the address %s", request.Pod, source)
	case !c.IsICMP() && !slices.Contains(ported, c.Protocol):
		return p, fmt.Errorf("protocol %d: want TCP, UDP, SCTP or ICMP", request.Protocol)
	case source.Is4() != to.Is4() || !to.IsValid():
		return p, fmt.Errorf("%s and %s are not of one family", source, to)
	}
	p.Actions = []ovs.Action{openflow.Resubmit(flows.Classifier)}
	return p, nil
}
