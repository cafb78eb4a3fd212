package flows

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

const (
	// maxDPHash is how many endpoints the datapath's own hash spreads evenly enough: OVS gives it at most 256 places, so
	// of 32 endpoints one may get an eighth more than another.
	maxDPHash = 32
	// maxClasses is how many classes of source ports are told apart.
	maxClasses = 256
	// maxBuckets is how many buckets one group gets: a group is one OpenFlow message of at most 64 KiB, which 545 buckets
	// with IPv6 endpoints fill.
	maxBuckets = 500
)

// spread makes the groups that choose among buckets. The datapath's hash of the connection chooses among few, without
// an upcall. TCP has that hash with many, too: the client's port chooses a group first (see byPort). Otherwise
// ovs-vswitchd hashes fields of each connection. That is even for any number of buckets, but weights are not shares.
// Buckets that exceed one group are divided among groups of equal size.
func (sb *serviceBuilder) spread(name string, buckets []openflow.Bucket) []portClass {
	source, destination := openflow.AddrFields(sb.port.ClusterIP)
	fields := []openflow.Field{source}
	if sb.service.Affinity == 0 && sb.service.Algorithm != model.HashSource {
		switch {
		case len(buckets) <= maxDPHash:
			return allPorts(openflow.ToGroup(sb.group(name, openflow.DPHash(), places(buckets))))
		case sb.port.Protocol == model.TCP && len(buckets) <= maxDPHash*maxClasses:
			return sb.byPort(name, buckets)
		}
		from, to := openflow.PortFields(sb.port.Protocol.Number())
		fields = append(fields, destination, openflow.IPProto, from, to)
	}
	by := openflow.SeededHash(sb.service.AffinityEpoch, fields...)
	if len(buckets) <= maxBuckets {
		return allPorts(openflow.ToGroup(sb.group(name, by, buckets)))
	}
	var top []openflow.Bucket
	for n, part := range parts(buckets, (len(buckets)+maxBuckets-1)/maxBuckets) {
		id := sb.group(fmt.Sprintf("%s/%d", name, n), by, part)
		// The parts' ids must not be those of their buckets: the same hash would choose both.
		top = append(top, openflow.Bucket{ID: partIDs + uint32(n), Weight: 1, Actions: []ovs.Action{openflow.ToGroup(id)}})
	}
	return allPorts(openflow.ToGroup(sb.group(name, by, top)))
}

// byPort makes a group for each class of source ports, so that connections share cache entries as they do with few
// endpoints. Bit 0 of the port is not part of a class: Linux prefers even ports for connect(). byPort is for TCP, whose
// clients use ephemeral ports; a UDP client may keep one port, and would reach one class only.
func (sb *serviceBuilder) byPort(name string, buckets []openflow.Bucket) []portClass {
	classes := 2
	for classes*maxDPHash < len(buckets) {
		classes *= 2
	}
	var all []portClass
	for n, part := range parts(buckets, classes) {
		id := sb.group(fmt.Sprintf("%s/%d", name, n), openflow.DPHash(), places(part))
		class := matches(openflow.SourcePort(uint16(n)<<1, uint16(classes-1)<<1))
		all = append(all, portClass{class, []ovs.Action{openflow.ToGroup(id)}})
	}
	return all
}

// parts divides buckets into n parts of equal size, in the order of their ids. A bucket that is added or removed moves
// others at the parts' edges only.
func parts(buckets []openflow.Bucket, n int) [][]openflow.Bucket {
	buckets = slices.SortedFunc(slices.Values(buckets), func(x, y openflow.Bucket) int { return cmp.Compare(x.ID, y.ID) })
	all := make([][]openflow.Bucket, n)
	for i := range n {
		all[i] = buckets[i*len(buckets)/n : (i+1)*len(buckets)/n]
	}
	return all
}

const (
	maxEndpointID = 0x7ffffff0
	// splitID is the second bucket of an endpoint in places; partIDs are the buckets that lead to a part.
	splitID = 0x7fffffff
	partIDs = 0x80000000
)

// places makes OVS give the buckets of a dp_hash group enough places. By itself it takes as few as the smallest
// weight asks for, and at least 16: then of five equal buckets one gets four and the others three. So one bucket is
// split, and its smaller part asks for more. Each place may become an entry of the datapath's cache for each client.
// Shares stay as they are.
func places(buckets []openflow.Bucket) []openflow.Bucket {
	const (
		one     = 100
		fewOnes = 16 // places that OVS gives at least
		few     = 8  // buckets for which 128 places are enough: none gets more than a sixteenth more than another
	)
	sum := 0
	equal := true
	for _, bucket := range buckets {
		sum += int(bucket.Weight)
		equal = equal && bucket.Weight == buckets[0].Weight
	}
	out := append(make([]openflow.Bucket, 0, len(buckets)+1), buckets...)
	if equal && fewOnes%len(buckets) == 0 {
		for i := range out {
			out[i].Weight = 1
		}
		return out
	}
	total := 256 * one
	if equal && len(buckets) <= few {
		total /= 2
	}
	largest := 0
	for i, bucket := range buckets {
		// Less than one place is none; and with more than 256 in all, OVS would hash otherwise.
		out[i].Weight = uint16(max(one, (total-one*len(buckets))*int(bucket.Weight)/sum))
		if out[i].Weight > out[largest].Weight {
			largest = i
		}
	}
	out[largest].Weight -= one
	split := out[largest]
	split.ID, split.Weight = splitID, one
	return append(out, split)
}

// bucketIDs gives each endpoint a number that depends on its address and port, so that it keeps it while others come
// and go. 0 is none.
func bucketIDs(endpoints []model.Endpoint) []uint32 {
	taken := make(map[uint32]bool, len(endpoints))
	ids := make([]uint32, len(endpoints))
	for i, e := range endpoints {
		h := fnv.New32a()
		addr := e.Addr.As16()
		_, _ = h.Write(binary.BigEndian.AppendUint16(addr[:], e.Port)) // a hash takes every write
		id := max(1, h.Sum32()%maxEndpointID)
		for taken[id] {
			id = max(1, (id+1)%maxEndpointID)
		}
		taken[id] = true
		ids[i] = id
	}
	return ids
}
