// Package mcp is the front for agents: the Model Context Protocol over
// streamable HTTP and over stdio.
//
// It owns the HTTP guard, sessions, the registration of tools and how a Result
// is put into words. It is the only room that imports mcp-go, and it decides
// nothing: every tool call goes to gate as it came in. What mcp-go leaves open
// between clients (cancels by bare request id, sessions without an owner) is
// closed here, in front of it.
package mcp
