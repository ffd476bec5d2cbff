package mcp

import (
	"context"

	mcpgo "github.com/mark3labs/mcp-go/mcp"

	"countersign/action"
)

// addResources publishes what a caller may know of policy. Reading it asks no
// cluster and is no tool call.
func (s *Server) addResources() {
	for _, r := range []struct {
		uri, name, description string
		text                   func(p *action.Principal) string
	}{
		{"countersign://permissions", "Your permissions", "The tools that you could use, and the policy rules that are about you.", s.Gate.Permissions},
		{"countersign://policy", "Policy", "The policy in force, summed up.", func(*action.Principal) string { return s.Gate.PolicySummary() }},
	} {
		s.mcp.AddResource(mcpgo.NewResource(r.uri, r.name, mcpgo.WithResourceDescription(r.description), mcpgo.WithMIMEType("text/plain")),
			func(ctx context.Context, _ mcpgo.ReadResourceRequest) ([]mcpgo.ResourceContents, error) {
				c, err := s.admit(ctx, mcpgo.MethodResourcesRead, "")
				if err != nil {
					return nil, err
				}
				return []mcpgo.ResourceContents{mcpgo.TextResourceContents{URI: r.uri, MIMEType: "text/plain", Text: r.text(&c.principal)}}, nil
			})
	}
}
