package cni

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// limitLatency is how long a packet may wait for its turn before it is dropped, as in the bandwidth plugin.
const limitLatency = 0.025 // seconds

// egressBurst bounds the bucket. A runtime may ask for the largest number that it can write, half a gigabyte, with which a
// limit begins only after that much.
const egressBurst = 256 << 10 // bytes

// limitEgress limits what the pod sends, on the pod's own end: with the userspace datapath OVS takes packets from a
// packet socket, which gets them before tc's ingress hook on the node's end, where the bandwidth plugin and
// ingress_policing_rate would limit. Called in the pod's network namespace. A pod with CAP_NET_ADMIN can undo it.
func limitEgress(h *netlink.Handle, link netlink.Link, limit egressLimit) error {
	rate, burst := limit.Rate, limit.Burst
	if rate == 0 {
		return nil
	}
	bytesPerSecond := max(rate/8, 1)
	bucket := min(burst/8, egressBurst)
	// At least a packet of the largest size that segmentation offload makes, or it would never pass.
	bucket = max(bucket, uint64(link.Attrs().MTU)+64, 64<<10)
	err := h.QdiscAdd(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytesPerSecond,
		Buffer:     netlink.Xmittime(bytesPerSecond, uint32(bucket)),
		Limit:      uint32(min(uint64(float64(bytesPerSecond)*limitLatency)+bucket, 1<<30)),
	})
	if err != nil {
		return fmt.Errorf("limit what the pod sends to %d bit/s: %w", rate, err)
	}
	return nil
}
