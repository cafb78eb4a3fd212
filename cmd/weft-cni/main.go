// Command weft-cni is Weft's CNI plugin: what the runtime gave it on stdin and in the environment becomes one call on
// the agent's Unix socket, and the agent's answer is printed. It decides nothing, keeps nothing but a DEL that no agent
// was there to take, and imports little, because its start-up is part of every pod's.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weft-cni/weft/pkg/cni/wire"
)

// notAvailable is STATUS's code for "cannot service ADD requests" (CNI 1.1.0).
const notAvailable = 50

func main() {
	command := func(name string) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return run(name, args) }
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    command("ADD"),
		Del:    command("DEL"),
		Check:  command("CHECK"),
		GC:     command("GC"),
		Status: command("STATUS"),
	}, version.All, "CNI plugin weft-cni: connects a pod through the Weft agent of its node")
}

func run(command string, args *skel.CmdArgs) error {
	socket, err := socketOf(args.StdinData)
	if err != nil {
		return err
	}
	var netns *os.File
	// DEL needs no namespace: with the node's end of the veth goes the pod's.
	if command == "ADD" || command == "CHECK" {
		if netns, err = openNetns(args.Netns); err != nil {
			return err
		}
		defer netns.Close()
	}
	req := wire.Request{
		Command:     command,
		ContainerID: args.ContainerID,
		Netns:       args.Netns,
		IfName:      args.IfName,
		Args:        args.Args,
		Config:      args.StdinData,
	}
	resp, err := wire.Call(socket, req, netns)
	if command == "DEL" && wire.NotListening(err) {
		resp, err = delLater(socket, req)
	}
	if err != nil {
		return callError(command, socket, err)
	}
	if resp.Error != nil {
		return resp.Error
	}
	if len(resp.Result) == 0 {
		return nil
	}
	if _, err := fmt.Printf("%s\n", resp.Result); err != nil {
		return types.NewError(types.ErrIOFailure, "print the result", err.Error())
	}
	return nil
}

// delLater leaves a DEL to the agent that will start: a pod must not stay Terminating, and its node not stay full,
// because the agent is away. The agent removes what is recorded as soon as it listens. It may have begun to listen
// before the record was there, so it is called once more.
func delLater(socket string, req wire.Request) (wire.Response, error) {
	pending := wire.Pending{ContainerID: req.ContainerID, IfName: req.IfName}
	if err := pending.Write(socket); err != nil {
		return wire.Response{}, fmt.Errorf("no agent listens, and the deletion cannot be recorded for later: %w", err)
	}
	resp, err := wire.Call(socket, req, nil)
	if wire.NotListening(err) {
		return wire.Response{}, nil
	}
	return resp, err
}

func socketOf(config []byte) (string, error) {
	var conf struct {
		Socket *string `json:"socket"`
	}
	if err := json.Unmarshal(config, &conf); err != nil {
		return "", types.NewError(types.ErrInvalidNetworkConfig,
			`key "socket" of the network configuration must be the path of the agent's socket`, err.Error())
	}
	if conf.Socket == nil {
		return wire.DefaultSocket, nil
	}
	if *conf.Socket == "" {
		return "", types.NewError(types.ErrInvalidNetworkConfig,
			`key "socket" of the network configuration is empty; leave it out for `+wire.DefaultSocket, "")
	}
	return *conf.Socket, nil
}

func openNetns(path string) (*os.File, error) {
	f, err := os.Open(path)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, fs.ErrNotExist):
		// Nothing was made yet, so this code's promise that there is nothing to clean up holds.
		return nil, types.NewError(types.ErrUnknownContainer,
			fmt.Sprintf("CNI_NETNS: the container's network namespace %q does not exist", path), "")
	default:
		return nil, types.NewError(types.ErrIOFailure, fmt.Sprintf("CNI_NETNS: open the container's network namespace %q",
			path), err.Error())
	}
}

func callError(command, socket string, err error) error {
	code := types.ErrIOFailure
	msg := fmt.Sprintf("call the Weft agent on %s", socket)
	if wire.IsUnavailable(err) {
		code = types.ErrTryAgainLater
		msg = fmt.Sprintf("the Weft agent does not answer on %s; is its pod running on this node?", socket)
	}
	if command == "STATUS" {
		code = notAvailable
	}
	return types.NewError(code, msg, err.Error())
}
