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

// netConf is our part of the network configuration. Everything a pod gets comes from the node, so there is little to say.
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
	// Valid is a pointer because a GC without the list and a GC with an empty one are very different requests.
	Valid *[]types.GCAttachment `json:"-"`
}

// egressLimit is our part of the bandwidth capability; the bandwidth plugin has the rest.
type egressLimit struct {
	Rate  uint64 `json:"egressRate"`  // bits a second; 0 is no limit
	Burst uint64 `json:"egressBurst"` // bits
}

// knownKeys are the keys of a plugin's configuration that we use or that are none of our business. cni.dev/… is the
// specification's own and always allowed.
var knownKeys = []string{"cniVersion", "name", "type", "capabilities", "dns", "prevResult", "runtimeConfig", "args", "socket"}

// parseConf reads a network configuration for every command that may fail because of it.
func parseConf(raw []byte) (netConf, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return netConf{}, errorf(types.ErrDecodingFailure, "network configuration is not a JSON object: %v", err)
	}
	for key, value := range keys {
		if !slices.Contains(knownKeys, key) && !strings.HasPrefix(key, "cni.dev/") {
			return netConf{}, errorf(types.ErrUnsupportedField, "network configuration has the key %q (value %s), which weft-cni does not know; it knows %s", key, value, strings.Join(knownKeys, ", "))
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
		conf.CNIVersion = "0.1.0" // what a configuration without a version means
	}
	if versions := version.All.SupportedVersions(); !slices.Contains(versions, conf.CNIVersion) {
		return netConf{}, errorf(types.ErrIncompatibleCNIVersion, "network configuration: cniVersion %q is not supported; supported are %s", conf.CNIVersion, strings.Join(versions, ", "))
	}
	if string(conf.PrevResult) == "null" {
		conf.PrevResult = nil
	}
	var err error
	conf.Valid, err = validAttachments(keys)
	return conf, err
}

// rejectUnknown refuses what the user asked for and would not get, for example a capability that we do not have.
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
			return errorf(types.ErrUnsupportedField, "network configuration has %s.%s (value %s), which weft-cni does not support; it supports %s", name, key, value, strings.Join(known, ", "))
		}
	}
	return nil
}

// validAttachments reads what GC must keep. libcni writes the list under both names, and an empty one as null.
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

// podArgs is what the runtime says about the pod in CNI_ARGS. The field names are the keys.
type podArgs struct {
	types.CommonArgs
	MAC                        types.UnmarshallableString
	K8S_POD_NAMESPACE          types.UnmarshallableString
	K8S_POD_NAME               types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
}

// identity says whose interface it is and which MAC was asked for, if any. A container that is not a pod of Kubernetes is
// refused: the API server never tells of it, so its policies would never be known and its port never opened.
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
	// The runtime's capability argument is the most specific, CNI_ARGS the oldest way to ask.
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

// validPod rejects what cannot be a pod's name. The names are recorded in OVSDB and make link names, so they must be what
// the API server would accept.
func validPod(pod model.PodRef) error {
	// As long as any name may be. Kubernetes' UIDs have 36 characters; those of static pods are hashes.
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

// validKey rejects what CNI does not allow as an attachment's key. weft-cni's library checks it, too; but the key names a
// file, so the server does not rely on its caller.
func validKey(containerID, ifName string) error {
	if err := utils.ValidateContainerID(containerID); err != nil {
		return err
	}
	if len(containerID) > maxContainerID {
		return errorf(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID has %d characters, more than %d", len(containerID), maxContainerID)
	}
	if err := utils.ValidateInterfaceName(ifName); err != nil {
		return err
	}
	if strings.ContainsFunc(ifName, unicode.IsControl) || !utf8.ValidString(ifName) {
		return errorf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME %q has characters that cannot be printed", ifName)
	}
	return nil
}

// maxContainerID leaves room for the interface's name in a file's name (255 bytes, NAME_MAX). Runtimes use 64.
const maxContainerID = 200

func podMAC(s string) (model.MAC, error) {
	mac, err := model.ParseMAC(s)
	switch {
	case err != nil:
		return model.MAC{}, err
	case mac == model.MAC{}:
		return model.MAC{}, fmt.Errorf("%s is no interface's address", mac)
	case mac[0]&1 != 0:
		return model.MAC{}, fmt.Errorf("%s is a multicast address", mac)
	case mac == model.RouterMAC || mac == model.GatewayMAC:
		return model.MAC{}, fmt.Errorf("%s belongs to the node", mac)
	}
	return mac, nil
}
