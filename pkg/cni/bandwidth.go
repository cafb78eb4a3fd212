package cni

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// limitLatency bounds how long a packet waits in the queue before it is dropped; the bandwidth plugin uses the same
// value.
const limitLatency = 0.025 // seconds

// egressBurst bounds the token bucket. A runtime may pass the largest burst that it can write (half a gigabyte), and
// the limit would apply only after that many bytes.
const egressBurst = 256 << 10 // bytes

// limitEgress limits the bandwidth that the pod sends with, on the pod's end of the veth. On the node's end the
// bandwidth plugin and ingress_policing_rate limit in tc's ingress hook, but with the userspace datapath OVS reads from
// a packet socket, which gets packets before that hook. Called in the pod's network namespace. A pod with CAP_NET_ADMIN
// can remove the limit.
func limitEgress(h *netlink.Handle, link netlink.Link, limit egressLimit) error {
	rate, burst := limit.Rate, limit.Burst
	if rate == 0 {
		return nil
	}
	bytesPerSecond := max(rate/8, 1)
	bucket := min(burst/8, egressBurst)
	// The bucket must hold the largest packet of segmentation offload, or that packet would never pass.
	bucket = max(bucket, uint64(link.Attrs().MTU)+64, 64<<10)
	err := h.QdiscAdd(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
		},
		Rate:   bytesPerSecond,
		Buffer: netlink.Xmittime(bytesPerSecond, uint32(bucket)),
		Limit:  uint32(min(uint64(float64(bytesPerSecond)*limitLatency)+bucket, 1<<30)),
	})
	if err != nil {
		return fmt.Errorf("limit what the pod sends to %d bit/s: %w", rate, err)
	}
	return nil
}
