package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"strings"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
)

// prompt is a task that people start from their client. What the task begins
// with is fetched first, as the caller and through the gate like any call, so
// that the model starts from facts.
type prompt struct {
	name, description string
	// fetch are the tools whose answers stand in the prompt.
	fetch []string
	task  string
}

var prompts = []prompt{
	{
		"triage_incident", "Finds out what is wrong with a workload, and proposes what to do.",
		[]string{"diagnose_workload"},
		"Find out what is wrong with %[1]s %[2]s in namespace %[3]s. Start from the data below; ask for more with describe_resource, list_events and get_pod_logs only where it leaves something open. " +
			"Change nothing yet. Say what is wrong, what shows it, and the one change that you would make; call check_access or diff_manifest before you propose it, so that you can say who has to approve it.",
	},
	{
		"safe_rollout", "Rolls out a change of a workload step by step, and says how to go back.",
		[]string{"diagnose_workload", "get_rollout_history"},
		"Roll out a change of %[1]s %[2]s in namespace %[3]s. Below is where it stands now. If it is not healthy, stop and say so. " +
			"Ask for the new image or manifest if it was not given. Show the difference with diff_manifest before you apply, give a reason with every change, wait for approvals with wait_for_operation, " +
			"follow get_rollout_status until it is over, and name the revision that undo_rollout would go back to.",
	},
	{
		"rollback", "Takes a workload back to an earlier revision.",
		[]string{"get_rollout_status", "get_rollout_history", "diagnose_workload"},
		"Take %[1]s %[2]s in namespace %[3]s back to an earlier revision. Below are its state and its revisions. Say which revision you would go back to and why, look at it with get_rollout_history and its number, " +
			"then call undo_rollout with to_revision and a reason, wait for approval if it is asked for, and follow get_rollout_status until it is over.",
	},
}

func (s *Server) addPrompts() {
	several := false
	for _, t := range s.Gate.Tools {
		several = several || strings.Contains(string(t.Schema), `"cluster"`)
	}
	for _, p := range prompts {
		options := []mcpgo.PromptOption{
			mcpgo.WithPromptDescription(p.description),
			mcpgo.WithArgument("kind", mcpgo.RequiredArgument(), mcpgo.ArgumentDescription("deployment, statefulset or daemonset")),
			mcpgo.WithArgument("name", mcpgo.RequiredArgument()),
			mcpgo.WithArgument("namespace", mcpgo.RequiredArgument()),
		}
		if several {
			options = append(options, mcpgo.WithArgument("cluster", mcpgo.RequiredArgument()))
		}
		s.mcp.AddPrompt(mcpgo.NewPrompt(p.name, options...), func(ctx context.Context, req mcpgo.GetPromptRequest) (*mcpgo.GetPromptResult, error) {
			return s.prompt(ctx, p, req.Params.Arguments)
		})
	}
}

func (s *Server) prompt(ctx context.Context, p prompt, args map[string]string) (result *mcpgo.GetPromptResult, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.Log.Error("a prompt panicked", "prompt", p.name, "panic", r, "stack", string(debug.Stack()))
			result, err = nil, errInternal
		}
	}()
	c, err := s.admit(ctx, mcpgo.MethodPromptsGet, p.name)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"kind", "name", "namespace"} {
		if args[name] == "" {
			return nil, fmt.Errorf("argument %s is missing: prompt %s takes kind, name and namespace of a workload", name, p.name)
		}
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	// The person's words stand in quotes: they name things and say nothing.
	text := fmt.Sprintf(p.task, quote(args["kind"]), quote(args["name"]), quote(args["namespace"]))
	result = &mcpgo.GetPromptResult{Description: p.description, Messages: []mcpgo.PromptMessage{
		mcpgo.NewPromptMessage(mcpgo.RoleUser, mcpgo.NewTextContent(text)),
	}}
	for _, tool := range p.fetch {
		req := s.request(ctx, c, tool, mcpgo.CallToolRequest{})
		req.RawArgs = raw
		answer := present(s.Gate.Call(ctx, req))
		result.Messages = append(result.Messages, mcpgo.NewPromptMessage(mcpgo.RoleUser, mcpgo.NewTextContent(tool+":\n"+contentText(answer))))
	}
	return result, nil
}

func quote(s string) string { return fmt.Sprintf("%q", clip(s, 253)) }

func contentText(r *mcpgo.CallToolResult) string {
	var parts []string
	for _, content := range r.Content {
		if text, ok := content.(mcpgo.TextContent); ok {
			parts = append(parts, text.Text)
		}
	}
	return strings.Join(parts, "\n")
}
