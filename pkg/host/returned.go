package host

import (
	"fmt"

	"github.com/weft-cni/weft/pkg/model"
)

// returnedZone is the kernel's conntrack zone of packets from clients outside that the switch has returned, for an
// endpoint in the node's own network (hostNetwork). They keep the client's address, so without a zone of its own such a
// connection could be taken for the one by which the client's packet entered the node (an endpoint may listen at the
// node port's number, or at an external address's port), or for a connection of the client to the endpoint itself. Only
// the original direction has the zone: answers are looked up in the default zone, where the kernel gives the client
// another port, for the endpoint, if a connection to the endpoint itself has the same. The number follows those of the
// switch's own zones.
const returnedZone = 22376

// addReturnedRules keeps such connections apart and leads their answers to the switch, which translates them back.
func addReturnedRules(add func(chain, comment string, words ...any), gateway string) {
	mark := fmt.Sprintf("%#x", serviceMark)
	// The mark is for reverse path filters that look routes up with it: the way back to the client is the switch.
	add(enteredChain, "returned by a Service: apart from other connections", "iifname", gateway,
		"ether saddr", model.ReturnedMAC.String(), "ct original zone set", returnedZone, "meta mark set mark or", mark)
	add(servicesChain, "returned by a Service: not into another", "ct original zone", returnedZone, "return")
	add(divertOutputChain, "answers to what a Service returned: to the switch",
		"ct original zone", returnedZone, "meta mark set mark or", mark)
	// The endpoint's socket takes the MTU of its route to the client, which is not by the gateway interface.
	add(unmarkChain, "TCP to the switch: segments that fit",
		"oifname", gateway, "tcp flags syn tcp option maxseg size set rt mtu")
}
