"""How the page looks: light and dark, wide and narrow, on screen and on paper."""

STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--quiet:#56606f;--back:#f6f7f9;--card:#fff;--edge:#dfe3e8;--area:#fbfcfd;
--grid:#e6e9ee;--link:#0b5cad;--bad:#b3261e;--label:#0072b2;--guess:#d55e00;--ground:#fff}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6e9ef;--quiet:#a3adbb;--back:#12151b;--card:#1b2029;
--edge:#323a47;--area:#161a21;--grid:#2a313c;--link:#7db7f0;--bad:#ff8a80;--label:#56b4e9;--guess:#e69f00;
--ground:#1b2029}}
*{box-sizing:border-box}body{font:14px/1.5 system-ui,"Noto Sans CJK SC","Microsoft YaHei","PingFang SC",sans-serif;
margin:0;color:var(--ink);background:var(--back)}main{max-width:1120px;margin:0 auto;padding:24px}
h1{font-size:22px;margin:0 0 4px}h2{font-size:16px;margin:28px 0 8px}h3{font-size:15px;margin:0;overflow-wrap:anywhere}
p{margin:4px 0}a{color:var(--link)}.meta,small{color:var(--quiet);font-size:13px}
.tiles{list-style:none;display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;padding:0;
margin:14px 0}.tiles li{background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:10px 14px}
.tiles b{display:block;font-size:24px;line-height:1.3}.tiles small{display:block}
.tiles .note{grid-column:1/-1;background:none;border:0;padding:0;color:var(--quiet);font-size:13px}
.card{background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:14px 16px;margin:14px 0}
.scores{display:flex;flex-wrap:wrap;gap:2px 18px}.problem{color:var(--bad);overflow-wrap:anywhere}
.problem::before{content:"⚠ "}.hidden{position:absolute}
svg.panel{display:block;width:calc(100% - 76px);margin:8px 12px 0 64px;overflow:visible}
.area{fill:var(--area);stroke:var(--edge)}.grid{stroke:var(--grid)}
svg text{font-size:11px;fill:var(--quiet)}.end{text-anchor:end}.middle{text-anchor:middle}
polyline{fill:none;stroke:var(--ink);stroke-width:1;vector-effect:non-scaling-stroke;pointer-events:none;
stroke-linejoin:round}.dot{stroke-width:5;stroke-linecap:round}
.label rect{fill:var(--label);stroke:var(--label);stroke-width:1.5}
.guess rect{fill:url(#hatch);stroke:var(--guess);stroke-width:1.5}
.tint{fill-opacity:.22;stroke-opacity:.45;vector-effect:non-scaling-stroke}
.tint.label{fill:var(--label);stroke:var(--label)}.tint.guess{fill:var(--guess);stroke:var(--guess)}
.label circle{fill:var(--label)}.guess circle{fill:none;stroke:var(--guess);stroke-width:1.8;pointer-events:all}
.ground{fill:var(--ground)}.stripe{fill:var(--guess)}.fill{fill:var(--label)}svg.bar{flex:1;width:50px}
.key{display:inline-block;width:14px;height:10px;border:1.5px solid var(--label);background:var(--label);
margin-right:4px;print-color-adjust:exact;-webkit-print-color-adjust:exact}.key.guess{border-color:var(--guess);
background:repeating-linear-gradient(135deg,var(--guess) 0 2.5px,var(--ground) 2.5px 5px)}
.intervals{margin:8px 0 0;font-size:13px}.intervals>div{display:flex;gap:10px;margin-top:2px}dt{color:var(--quiet)}
.intervals dt{flex:0 0 118px}dd{margin:0}.intervals dd{min-width:0}.intervals ul{list-style:none;margin:0;padding:0;
display:flex;flex-wrap:wrap;gap:0 16px}li{overflow-wrap:anywhere}em{font-style:normal;font-weight:600;color:var(--bad)}
summary{cursor:pointer;color:var(--quiet)}
.counts{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:12px 28px}.counts dl{margin:4px 0}
.counts h3{font-size:14px}.counts dl div{display:flex;justify-content:space-between;gap:10px;
border-top:1px solid var(--edge);padding:2px 0}
.scroll{overflow-x:auto;border:1px solid var(--edge);border-radius:6px}table{border-collapse:collapse;width:100%;
background:var(--card)}td,th{padding:3px 10px;border-top:1px solid var(--grid);text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums}thead th{border-top:0;color:var(--quiet);font-weight:600;white-space:nowrap;
vertical-align:bottom}th{text-align:left;font-weight:400}th.n{text-align:right}tbody th{overflow-wrap:anywhere;
min-width:110px}[aria-label="All records"] tbody th{min-width:200px}
td.text{text-align:left;min-width:220px;overflow-wrap:anywhere}td.bar{width:34%}
td.bar div{display:flex;gap:10px;align-items:center;min-width:110px}
@media (max-width:640px){main{padding:14px}.wide{display:none}.card{padding:12px}.intervals>div{display:block}
.tiles{grid-template-columns:repeat(auto-fit,minmax(140px,1fr))}}
@media print{main{max-width:none;padding:0}.card,.tiles li,tr{break-inside:avoid}h2,h3{break-after:avoid}
.scroll{overflow:visible}body{background:#fff}}
"""
