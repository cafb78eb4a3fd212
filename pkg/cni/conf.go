package cni

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weft-cni/weft/pkg/model"
)

// netConf is Weft's part of the network configuration. Most settings of a pod come from the node, so it has few keys.
type netConf struct {
	CNIVersion    string          `json:"cniVersion"`
	Name          string          `json:"name"`
	DNS           types.DNS       `json:"dns"`
	PrevResult    json.RawMessage `json:"prevResult"`
	RuntimeConfig struct {
		MAC       string      `json:"mac"`
		Bandwidth egressLimit `json:"bandwidth"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	// Valid is a pointer to distinguish a GC without the list from a GC with an empty list.
	Valid *[]types.GCAttachment `json:"-"`
}

// egressLimit is Weft's part of the bandwidth capability; the bandwidth plugin implements ingress.
type egressLimit struct {
	Rate  uint64 `json:"egressRate"`  // bits per second; 0 is unlimited
	Burst uint64 `json:"egressBurst"` // bits
}

// knownKeys are the keys of a plugin configuration that Weft uses, or that the runtime owns. Keys cni.dev/… belong
// to the CNI specification and are always allowed.
var knownKeys = []string{
	"cniVersion", "name", "type", "capabilities", "dns", "prevResult", "runtimeConfig", "args", "socket",
}

// parseConf parses a network configuration, for all commands that may fail because of it.
func parseConf(raw []byte) (netConf, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return netConf{}, errorf(types.ErrDecodingFailure, "network configuration is not a JSON object: %v", err)
	}
	for key, value := range keys {
		if !slices.Contains(knownKeys, key) && !strings.HasPrefix(key, "cni.dev/") {
			return netConf{}, errorf(types.ErrUnsupportedField, "unknown key %q (value %s) in the network configuration; "+
				"weft-cni supports %s", key, value, strings.Join(knownKeys, ", "))
		}
	}
	if err := rejectUnknown(keys["runtimeConfig"], "runtimeConfig", "mac", "bandwidth"); err != nil {
		return netConf{}, err
	}
	var conf netConf
	if err := json.Unmarshal(raw, &conf); err != nil {
		return netConf{}, errorf(types.ErrInvalidNetworkConfig, "network configuration: %v", err)
	}
	if conf.CNIVersion == "" {
		conf.CNIVersion = "0.1.0" // the meaning of a missing version (CNI specification)
	}
	if versions := version.All.SupportedVersions(); !slices.Contains(versions, conf.CNIVersion) {
		return netConf{}, errorf(types.ErrIncompatibleCNIVersion, "network configuration: cniVersion %q is not "+
			"supported; supported are %s", conf.CNIVersion, strings.Join(versions, ", "))
	}
	if string(conf.PrevResult) == "null" {
		conf.PrevResult = nil
	}
	var err error
	conf.Valid, err = validAttachments(keys)
	return conf, err
}

// rejectUnknown returns an error for a setting that the user wrote and Weft does not implement, such as a capability.
func rejectUnknown(object json.RawMessage, name string, known ...string) error {
	if object == nil {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(object, &keys); err != nil {
		return errorf(types.ErrInvalidNetworkConfig, "network configuration: %s: %v", name, err)
	}
	for key, value := range keys {
		if !slices.Contains(known, key) {
			return errorf(types.ErrUnsupportedField, "network configuration has %s.%s (value %s), which weft-cni "+
				"does not support; it supports %s", name, key, value, strings.Join(known, ", "))
		}
	}
	return nil
}

// validAttachments returns the attachments that GC must keep. libcni writes the list under both keys, and an empty one
// as null.
func validAttachments(keys map[string]json.RawMessage) (*[]types.GCAttachment, error) {
	for _, key := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
		raw, ok := keys[key]
		if !ok {
			continue
		}
		valid := []types.GCAttachment{}
		if err := json.Unmarshal(raw, &valid); err != nil {
			return nil, errorf(types.ErrInvalidNetworkConfig, "network configuration: %s: %v", key, err)
		}
		return &valid, nil
	}
	return nil, nil
}

// podArgs are the pod's fields in CNI_ARGS. The field names are the keys.
type podArgs struct {
	types.CommonArgs
	MAC                        types.UnmarshallableString
	K8S_POD_NAMESPACE          types.UnmarshallableString
	K8S_POD_NAME               types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
}

// identity returns the pod of the request and the requested MAC, if any. It rejects containers that are not Kubernetes
// pods: the API server never reports them, so their policies would never be known and their ports never opened.
func identity(args string, conf netConf) (model.PodRef, model.MAC, error) {
	var a podArgs
	if err := types.LoadArgs(args, &a); err != nil {
		return model.PodRef{}, model.MAC{}, errorf(types.ErrInvalidEnvironmentVariables, "CNI_ARGS %q: %v", args, err)
	}
	pod := model.PodRef{Namespace: string(a.K8S_POD_NAMESPACE), Name: string(a.K8S_POD_NAME), UID: string(a.K8S_POD_UID)}
	if pod.Namespace == "" || pod.Name == "" {
		return model.PodRef{}, model.MAC{}, errorf(types.ErrInvalidEnvironmentVariables,
			"CNI_ARGS %q must name K8S_POD_NAMESPACE and K8S_POD_NAME: Weft connects pods of Kubernetes only", args)
	}
	if err := validPod(pod); err != nil {
		return model.PodRef{}, model.MAC{}, errorf(types.ErrInvalidEnvironmentVariables, "CNI_ARGS: %v", err)
	}
	// The runtime's capability argument is the most specific, CNI_ARGS the oldest form.
	for _, asked := range []struct{ where, value string }{
		{"runtimeConfig.mac", conf.RuntimeConfig.MAC},
		{"args.cni.mac", conf.Args.CNI.MAC},
		{"MAC in CNI_ARGS", string(a.MAC)},
	} {
		if asked.value == "" {
			continue
		}
		mac, err := podMAC(asked.value)
		if err != nil {
			return model.PodRef{}, model.MAC{}, errorf(types.ErrInvalidNetworkConfig, "%s: %v", asked.where, err)
		}
		return pod, mac, nil
	}
	return pod, model.MAC{}, nil
}

// validPod rejects invalid pod names. The names are recorded in OVSDB and are part of link names, so they must follow
// the rules of the API server.
func validPod(pod model.PodRef) error {
	// The length of any name. Kubernetes' UIDs have 36 characters; those of static pods are hashes.
	const maxUID = validation.DNS1123SubdomainMaxLength
	notText := func(r rune) bool { return r <= ' ' || r > '~' }
	if why := validation.IsDNS1123Label(pod.Namespace); len(why) > 0 {
		return fmt.Errorf("invalid K8S_POD_NAMESPACE %.100q: %s", pod.Namespace, strings.Join(why, "; "))
	}
	if why := validation.IsDNS1123Subdomain(pod.Name); len(why) > 0 {
		return fmt.Errorf("invalid K8S_POD_NAME %.300q: %s", pod.Name, strings.Join(why, "; "))
	}
	if len(pod.UID) > maxUID || strings.ContainsFunc(pod.UID, notText) {
		return fmt.Errorf("invalid K8S_POD_UID %.300q: at most %d printable characters", pod.UID, maxUID)
	}
	return nil
}

// validKey rejects an attachment's key that CNI does not allow. weft-cni's library checks it, too; but the key becomes
// a file name, so the server does not rely on its caller.
func validKey(containerID, ifName string) error {
	if err := utils.ValidateContainerID(containerID); err != nil {
		return err
	}
	if len(containerID) > maxContainerID {
		return errorf(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID has %d characters, more than %d",
			len(containerID), maxContainerID)
	}
	if err := utils.ValidateInterfaceName(ifName); err != nil {
		return err
	}
	if strings.ContainsFunc(ifName, unicode.IsControl) || !utf8.ValidString(ifName) {
		return errorf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME %q has characters that cannot be printed", ifName)
	}
	return nil
}

// maxContainerID leaves room for the interface's name in a file name (255 bytes, NAME_MAX). Runtimes use 64 characters.
const maxContainerID = 200

func podMAC(s string) (model.MAC, error) {
	mac, err := model.ParseMAC(s)
	switch {
	case err != nil:
		return model.MAC{}, err
	case mac == model.MAC{}:
		return model.MAC{}, fmt.Errorf("invalid interface address %s", mac)
	case mac[0]&1 != 0:
		return model.MAC{}, fmt.Errorf("%s is a multicast address", mac)
	case mac == model.RouterMAC || mac == model.GatewayMAC:
		return model.MAC{}, fmt.Errorf("%s belongs to the node", mac)
	}
	return mac, nil
}
