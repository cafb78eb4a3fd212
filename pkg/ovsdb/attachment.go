package ovsdb

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/pkg/model"
)

// The external_ids of a pod's Interface row. They are the only record of the attachment, so they are complete.
const (
	idPrefix      = "weft."
	idPod         = idPrefix + "pod"
	idPodUID      = idPrefix + "pod-uid"
	idContainerID = idPrefix + "container-id"
	idIfName      = idPrefix + "if-name"
	idNetNS       = idPrefix + "netns"
	idOFPort      = idPrefix + "ofport"
	idMAC         = idPrefix + "mac"
	idIPs         = idPrefix + "ips"
)

// idLastIPs is the key of the Bridge row's external_ids with the last allocated addresses.
const idLastIPs = idPrefix + "last-ips"

// encodeAttachment is the inverse of decodeAttachment.
func encodeAttachment(a model.Attachment) map[string]string {
	ips := make([]string, len(a.IPs))
	for i, ip := range a.IPs {
		ips[i] = ip.String()
	}
	ids := map[string]string{
		idPod:         a.Pod.String(),
		idContainerID: a.ContainerID,
		idIfName:      a.IfName,
		idOFPort:      strconv.FormatUint(uint64(a.OFPort), 10),
		idMAC:         a.MAC.String(),
		idIPs:         strings.Join(ips, ","),
	}
	if a.Pod.UID != "" {
		ids[idPodUID] = a.Pod.UID
	}
	if a.NetNS != "" {
		ids[idNetNS] = a.NetNS
	}
	return ids
}

// isOurs reports whether AddPort made this row of a port on Weft's bridge, with a valid record or not.
func isOurs(externalIDs map[string]string) bool {
	for k := range externalIDs {
		if strings.HasPrefix(k, idPrefix) {
			return true
		}
	}
	return false
}

func decodeAttachment(ifName string, ids map[string]string) (model.Attachment, error) {
	var errs []error
	need := func(key string) string {
		v, ok := ids[key]
		if !ok || v == "" {
			errs = append(errs, fmt.Errorf("external_ids has no %s", key))
		}
		return v
	}
	bad := func(key string, err error) {
		if err != nil && ids[key] != "" {
			errs = append(errs, fmt.Errorf("external_ids:%s: %w", key, err))
		}
	}
	a := model.Attachment{
		HostIfName: ifName, ContainerID: need(idContainerID), IfName: need(idIfName), NetNS: ids[idNetNS],
	}
	var err error
	a.Pod, err = model.ParsePodRef(need(idPod))
	bad(idPod, err)
	a.Pod.UID = ids[idPodUID]
	a.MAC, err = model.ParseMAC(need(idMAC))
	bad(idMAC, err)
	a.OFPort, err = parseOFPort(need(idOFPort))
	bad(idOFPort, err)
	for s := range strings.SplitSeq(need(idIPs), ",") {
		ip, err := netip.ParseAddr(s)
		bad(idIPs, err)
		a.IPs = append(a.IPs, ip)
	}
	if len(errs) > 0 {
		return model.Attachment{}, errors.Join(errs...)
	}
	return a, nil
}

func parseOFPort(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, err
	}
	if n < uint64(model.PortPodMin) || n > uint64(model.PortPodMax) {
		return 0, fmt.Errorf("%d is not a pod's port number (%d to %d)", n, model.PortPodMin, model.PortPodMax)
	}
	return uint32(n), nil
}

// checkAttachment rejects an attachment whose record would be invalid.
func checkAttachment(a model.Attachment) error {
	if a.HostIfName == "" {
		return errors.New("the attachment has no host interface name")
	}
	if len(a.IPs) == 0 {
		return errors.New("the attachment has no address")
	}
	_, err := decodeAttachment(a.HostIfName, encodeAttachment(a))
	return err
}
