package mcp

import (
	"context"
	"errors"
	"slices"

	mcpgo "github.com/mark3labs/mcp-go/mcp"
)

// Scopes are the OAuth scopes that tokens must have; an empty one is not demanded.
// They bound what a token can be used for; policy decides about who uses it.
type Scopes struct{ Read, Change string }

func (s Scopes) all() []string {
	return slices.DeleteFunc([]string{s.Read, s.Change}, func(scope string) bool { return scope == "" })
}

// missingScopes are all that a message takes when the caller lacks one of them: a
// client that asks for these comes back once. A tool that changes something takes
// both, because its answers show what is there.
func (s *Server) missingScopes(c caller, method, tool string) []string {
	needed := Scopes{Read: s.Scopes.Read}
	switch mcpgo.MCPMethod(method) {
	case mcpgo.MethodToolsCall:
		if !s.reads[tool] {
			needed = s.Scopes
		}
	case mcpgo.MethodPromptsGet, mcpgo.MethodResourcesRead:
	default:
		return nil // tells what there is to ask for
	}
	for _, scope := range needed.all() {
		if !slices.Contains(c.scopes, scope) {
			return needed.all()
		}
	}
	return nil
}

var errScope = errors.New("the token is not for this: it lacks a scope; ask whoever configured this client for a token that has it")

// admit finds out who calls, and looks at the scopes once more: on stdio nobody
// has, and over HTTP what the guard read must be what mcp-go has understood.
func (s *Server) admit(ctx context.Context, method mcpgo.MCPMethod, tool string) (caller, error) {
	c, err := s.caller(ctx)
	if err != nil {
		return c, errTokenRefused // the reason is in the log, and only there
	}
	if s.missingScopes(c, string(method), tool) != nil {
		s.Gate.Refused(c.principal, c.source, errScope)
		return c, errScope
	}
	return c, nil
}
