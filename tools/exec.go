package tools

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/google/jsonschema-go/jsonschema"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

const (
	defaultSeconds = 30
	maxSeconds     = 300
	maxArguments   = 100
)

type execInPodInput struct {
	Namespace      string   `json:"namespace"`
	Pod            string   `json:"pod"`
	Container      string   `json:"container,omitempty"`
	Command        []string `json:"command" jsonschema:"program and arguments, run as they are: no shell"`
	TimeoutSeconds int64    `json:"timeout_seconds,omitempty" jsonschema:"default 30"`
	Reason         string   `json:"reason,omitempty" jsonschema:"why; approvers see it as your words"`
}

func execInPod() *Tool {
	return define(Tool{
		Name:        "exec_in_pod",
		Title:       "Run a command in a pod",
		Description: "Runs one command in a container, without input or terminal, and shows its output.",
		Scopes:      []action.Scope{{Verbs: []string{action.Create}, Resource: "pods", Subresource: action.Exec}},
		Reads:       []action.Scope{{Verbs: []string{action.Get}, Resource: "pods"}},
	}, func(s *jsonschema.Schema) {
		between(s, "timeout_seconds", 1, maxSeconds)
		limitReason(s)
		command := s.Properties["command"]
		command.Types, command.Type = nil, "array"
		command.MinItems, command.MaxItems = jsonschema.Ptr(1), jsonschema.Ptr(maxArguments)
	}, func(ctx context.Context, r Reader, cluster string, in execInPodInput) (Call, error) {
		a := action.Action{
			Cluster: cluster, Verb: action.Create, Resource: pods, Subresource: action.Exec, Namespace: in.Namespace, Name: in.Pod,
			Options: action.Options{Command: in.Command, Container: in.Container, TimeoutSeconds: in.TimeoutSeconds},
		}
		if a.Options.TimeoutSeconds == 0 {
			a.Options.TimeoutSeconds = defaultSeconds
		}
		if err := checkTarget(a); err != nil {
			return Call{}, err
		}
		if err := checkCommand(in.Command); err != nil {
			return Call{}, err
		}
		if in.Container == "" {
			var err error
			if a.Options.Container, err = defaultContainer(ctx, r, cluster, in.Namespace, in.Pod); err != nil {
				return Call{}, err
			}
		}
		return Call{Plan: action.Plan{Actions: []action.Action{a}}, Reason: in.Reason}, nil
	}, renderExec)
}

// checkCommand refuses what could not be shown to an approver as it is.
func checkCommand(command []string) error {
	if len(command) == 0 || command[0] == "" {
		return BadArgument(`command is empty: give the program and its arguments, such as ["cat", "/etc/hosts"]`)
	}
	size := 0
	for i, argument := range command {
		if size += len(argument); size > maxText {
			return BadArgument("command is longer than %d bytes: run something shorter", maxText)
		}
		if !utf8.ValidString(argument) || strings.ContainsRune(argument, 0) {
			return BadArgument("command, argument %d is not text", i)
		}
	}
	if audit.CommandMasked(command) {
		return BadArgument("command holds what reads like a credential, which would be hidden from whoever approves it and from the log: have the program read it from a file or a variable of the container")
	}
	return nil
}

// execResult is what kube answers for a command.
type execResult struct {
	ExitCode      *int   `json:"exitCode"`
	TimedOut      bool   `json:"timedOut"`
	Stdout        string `json:"stdout"`
	Stderr        string `json:"stderr"`
	StdoutOmitted int64  `json:"stdoutOmitted"`
	StderrOmitted int64  `json:"stderrOmitted"`
}

// renderExec shows how the command ended, then what it wrote. Only the beginning
// of each stream was kept.
func renderExec(responses []Response) (string, error) {
	r := responses[0]
	var result execResult
	if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &result); err != nil {
		return "", fmt.Errorf("reading a command's result: %w", err)
	}
	var b strings.Builder
	switch {
	case result.TimedOut:
		fmt.Fprintf(&b, "No end after %d seconds; it may still run in the container. Give a longer timeout_seconds, or stop it.\n", r.Action.Options.TimeoutSeconds)
	case result.ExitCode != nil:
		fmt.Fprintf(&b, "Exit code %d.\n", *result.ExitCode)
	}
	for _, stream := range []struct {
		name, text string
		omitted    int64
		most       int
	}{{"stdout", result.Stdout, result.StdoutOmitted, maxBytes - 8<<10}, {"stderr", result.Stderr, result.StderrOmitted, 6 << 10}} {
		text := audit.MaskText(plainText([]byte(stream.text)))
		switch {
		case text == "":
			continue
		case len(text) > stream.most:
			fmt.Fprintf(&b, "%s, the first %d of %d bytes (have the command write less):\n", stream.name, stream.most, int64(len(text))+stream.omitted)
			text = strings.ToValidUTF8(text[:stream.most], "")
		default:
			fmt.Fprintf(&b, "%s:\n", stream.name)
		}
		b.WriteString(strings.TrimSuffix(text, "\n") + "\n")
	}
	return b.String(), nil
}
