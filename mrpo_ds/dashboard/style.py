"""What the style sheet of a dashboard has besides that of the data report."""

from mrpo_ds.report.style import STYLE as REPORT_STYLE

# Okabe and Ito's colours, which stay apart for colour-blind readers, darker by day and lighter by night.
STYLE = (
    REPORT_STYLE
    + r"""
:root {
  --c0: #0072b2; --c1: #c4501b; --c2: #008562; --c3: #a8478a; --c4: #a67500; --c5: #2b8fc9; --c6: #5f6772;
  --c7: #7b4f3a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --c0: #5aa9e6; --c1: #f28a4d; --c2: #3fc99c; --c3: #e39ccb; --c4: #efb73e; --c5: #9bd5f7; --c6: #b7bec8;
    --c7: #cfa58c;
  }
}
main { max-width: 84rem; }
h1 { overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; }
a { color: var(--bar); }
#controls {
  position: sticky; top: 0; z-index: 3; display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1.2rem;
  background: var(--ground); border-bottom: 1px solid var(--line); padding: .45rem 0; margin: 0 0 .4rem;
}
#controls[hidden] { display: none; }
#controls label { display: flex; align-items: center; gap: .5rem; }
#smoothing { width: 9rem; accent-color: var(--bar); }
#smoothing-value { min-width: 2.2rem; font-variant-numeric: tabular-nums; }
#runs { display: flex; flex-wrap: wrap; gap: .25rem .4rem; max-height: 6.5rem; overflow-y: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(23rem, 100%), 1fr)); gap: 1.1rem 1.6rem; }
.charts figure { min-width: 0; margin: 0; }
.charts figcaption { line-height: 1.35; min-height: 2.7em; }
.charts figcaption small { display: block; }
.good-look { color: var(--soft); font-size: .85rem; line-height: 1.35; margin: .1rem 0 0; }
.plot { position: relative; touch-action: pan-y; border-radius: 4px; }
.plot:focus-visible, button:focus-visible, a:focus-visible, summary:focus-visible, #smoothing:focus-visible {
  outline: 2px solid var(--bar); outline-offset: 2px;
}
.plot svg { min-height: 210px; }
.plot svg line { stroke-dasharray: none; stroke-width: 1; }
.plot svg .grid { stroke: var(--line); }
.plot svg .tick { stroke: var(--soft); }
.plot svg .mark { stroke: var(--soft); stroke-dasharray: 2 4; }
.plot svg .cross { stroke: var(--soft); }
.plot svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.plot svg .raw { stroke-width: 1; opacity: .3; }
.plot svg .band { fill-opacity: .14; stroke-opacity: .25; stroke-width: .7; }
.tip {
  position: absolute; top: 4px; left: 0; z-index: 2; max-width: 100%; padding: .3rem .55rem; font-size: 12.5px;
  line-height: 1.4; background: var(--card); border: 1px solid var(--line); border-radius: 5px; pointer-events: none;
  box-shadow: 0 2px 8px rgb(0 0 0 / .18); font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
.tip[hidden] { display: none; }
.tip div { padding-left: .9rem; position: relative; }
.tip div::before {
  content: ""; position: absolute; left: 0; top: .42em; width: .55rem; height: .55rem; border-radius: 2px;
  background: var(--stroke);
}
.tools { display: flex; flex-wrap: wrap; gap: .25rem .35rem; margin: .15rem 0; }
.toggle {
  display: inline-flex; align-items: center; gap: .35rem; font: inherit; font-size: .82rem; color: var(--ink);
  background: var(--card); border: 1px solid var(--line); border-radius: 999px; padding: .1rem .6rem; cursor: pointer;
  max-width: 100%; overflow-wrap: anywhere; text-align: left;
}
.toggle[aria-pressed="false"] { opacity: .5; text-decoration: line-through; }
.scale[aria-pressed="false"] { opacity: 1; text-decoration: none; }
.scale[aria-pressed="true"] { border-color: var(--bar); color: var(--bar); font-weight: 600; }
.scale { margin-left: auto; }
.toggle:disabled { opacity: .35; cursor: not-allowed; }
.toggle svg.swatch { width: 22px; height: 10px; flex: none; }
.toggle svg.swatch line { stroke-width: 2.5; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 12rem; max-width: 60rem; }
details > .said { padding: 0 .8rem; color: var(--soft); }
details .wide { margin: .3rem .8rem .8rem; }
details .wide:focus-visible { outline: 2px solid var(--bar); }
section { scroll-margin-top: 3.5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .5rem; }
.tiles { margin: .8rem 0 1rem; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .35rem .7rem; }
.tiles dt { color: var(--soft); font-size: .82rem; line-height: 1.3; }
.tiles dd { margin: 0; font-size: 1.1rem; font-weight: 600; overflow-wrap: anywhere; }
th.n, td.n { padding-left: .9rem; }
td { overflow-wrap: break-word; }
th.n { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
.wide tr > :first-child { position: sticky; left: 0; background: var(--ground); min-width: 8rem; max-width: 46vw; }
.wide td:first-child { overflow-wrap: anywhere; }
details .wide tr > :first-child { background: var(--card); }
@media (max-width: 480px) {
  main { padding: 1rem .8rem 3rem; }
  h1 { font-size: 1.3rem; }
  section { scroll-margin-top: 8rem; }
  .charts figcaption { min-height: 0; }
  #controls { gap: .25rem .6rem; }
}
"""
)
